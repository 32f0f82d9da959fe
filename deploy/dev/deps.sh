#!/usr/bin/env bash
# Installs what is missing on a Debian machine: `deps.sh run` to build and run, `deps.sh test` for the tests too.
# Touches nothing and is quick when everything is there.
set -euo pipefail

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# What each tool is needed for stands beside it: tool package.
need=(
    "gcc gcc"                       # the linker, and the C code of libopus and ring
    "make make"
    "cmake cmake"                   # libopus
    "pkg-config pkg-config"
    "protoc protobuf-compiler"      # etcd-client's build
    "ffmpeg ffmpeg"                 # the demo stream, the clip of `make bench`, and audio that needs the ffmpeg child
    "curl curl"
    "git git"                       # the commit in --version
)
if [[ ${1:-run} == test ]]; then
    need+=(
        "etcd etcd-server"
        "gst-launch-1.0 gstreamer1.0-tools"
        "chromium chromium"
        "node nodejs"
        "npm npm"
        "python3 python3"
        "promtool prometheus"       # its unit tests of the alerts
        "ip iproute2"               # the chart's containers in network namespaces
        "iptables iptables"
        "buildah buildah"           # the image, made and run as the chart does
        "podman podman"
        "runc runc"
    )
fi

missing=()
for entry in "${need[@]}"; do
    read -r tool package <<<"$entry"
    have "$tool" || missing+=("$package")
done
# Certificates, libraries and plugins have no command to look for.
has_package() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
extra=(ca-certificates libprotobuf-dev)
[[ ${1:-run} == test ]] && extra+=(
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
    gstreamer1.0-plugins-ugly fonts-dejavu-core python3-venv
)
if have dpkg-query; then
    for package in "${extra[@]}"; do
        has_package "$package" || missing+=("$package")
    done
fi

if ((${#missing[@]})); then
    if ! have apt-get; then
        say "please install: ${missing[*]} (this script knows only Debian's apt-get)"
        exit 1
    fi
    root=()
    if [[ $(id -u) != 0 ]]; then
        if ! have sudo; then
            say "please run as root: apt-get install --no-install-recommends ${missing[*]}"
            exit 1
        fi
        root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

export PATH="$PATH:$HOME/.cargo/bin"
if ! have cargo; then
    say "installing Rust by rustup (https://rustup.rs); rust-toolchain.toml names the version"
    curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs |
        sh -s -- -y --profile minimal --default-toolchain none
fi
# With rustup, the first call fetches the pinned toolchain; without, the version is checked.
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../../Cargo.toml")
found=$(cargo --version | awk '{ print $2 }')
if [[ $(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1) != "$wanted" ]]; then
    say "cargo is $found, $wanted or newer is needed: install it by rustup (https://rustup.rs)"
    exit 1
fi
