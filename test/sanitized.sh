#!/bin/bash
# Builds the addon with AddressSanitizer and UndefinedBehaviorSanitizer, apart
# from build/, and runs the given compiled tests on it (default: all of
# test/unit/native). Run it as `npm run check:native-sanitized`, which compiles the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$(pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/virtvault-sanitized.XXXXXX")
# A test reads it as another user.
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT

cp -r binding.gyp package.json native dist "$work"
ln -s "$top/node_modules" "$work/node_modules"
cd "$work"
"$top/node_modules/.bin/node-gyp" configure --loglevel=error -- -Dsanitize=address,undefined
"$top/node_modules/.bin/node-gyp" build --loglevel=error -j 2 > build.log 2>&1 || { tail -n 40 build.log; exit 1; }

if [ $# -eq 0 ]; then set -- dist/test/unit/native/*.test.js; fi
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
for test in "$@"; do
  echo "# $test"
  # Leaks are not looked for: Node frees nothing at its end.
  LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 node "$test" > test.log 2>&1 || { tail -n 60 test.log; exit 1; }
  grep '^# {' test.log
done
