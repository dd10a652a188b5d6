{
  "variables": { "sanitize%": "" },
  "targets": [
    {
      "target_name": "virtvault",
      "sources": [
        "native/addon/addon.cc",
        "native/addon/codec_binding.cc",
        "native/addon/mailbox.cc",
        "native/addon/nbd_binding.cc",
        "native/addon/nbd_channel.cc",
        "native/addon/system_binding.cc",
        "native/addon/virt_binding.cc",
        "native/addon/virt_convert.cc",
        "native/codec/chunk_id.cc",
        "native/codec/crc32c.cc",
        "native/codec/record_cipher.cc",
        "native/codec/record_decoder.cc",
        "native/codec/record_encoder.cc",
        "native/codec/record_header.cc",
        "native/codec/sha256_lanes.cc",
        "native/codec/sha256_wide.cc",
        "native/codec/zstd.cc",
        "native/nbd/command.cc",
        "native/nbd/connection.cc",
        "native/nbd/extents.cc",
        "native/nbd/handle.cc",
        "native/nbd/socket_guard.cc",
        "native/nbd/worker.cc",
        "native/system/files.cc",
        "native/system/process.cc",
        "native/virt/event_loop.cc",
        "native/virt/event_source.cc",
        "native/virt/lane.cc",
        "native/virt/link.cc",
        "native/virt/link_backup.cc",
        "native/virt/link_domain.cc",
        "native/virt/virt_error.cc"
      ],
      "include_dirs": ["<!@(node -p \"require('node-addon-api').include_dir\")", "native"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_CPP_EXCEPTIONS_ALL", "NODE_ADDON_API_DISABLE_DEPRECATED"],
      "cflags!": ["-fno-exceptions"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17"],
      "cflags_cc": [
        "-std=c++20", "-fexceptions", "-frtti", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wno-unused-parameter",
        "<!@(pkg-config --cflags libnbd libvirt libvirt-qemu libzstd libcrypto)"
      ],
      "libraries": ["<!@(pkg-config --libs libnbd libvirt libvirt-qemu libzstd libcrypto)"],
      "ldflags": ["-Wl,-z,nodelete"],
      "conditions": [
        ["sanitize!=''", {
          "cflags_cc": ["-fsanitize=<(sanitize)", "-fno-omit-frame-pointer", "-g"],
          "ldflags": ["-fsanitize=<(sanitize)"]
        }]
      ]
    }
  ]
}
