#!/usr/bin/env bash
# rootfs.sh BINARY DIRECTORY [PROGRAM …]: makes the whole file system of an image on a Debian machine: the binary, further programs from
# PATH, the libraries they load, certificates, a user. No shell, no package manager. /var/lib/dpkg/status.d tells scanners what the
# libraries are, /usr/share/headwater/sbom.cdx.json what the binary is made of.
set -euo pipefail

binary=$1 root=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)

rm -rf "$root"
mkdir -p "$root"/{etc/ssl/certs,usr/{bin,lib,lib64,share/headwater},var/lib/dpkg/status.d,tmp}
chmod 1777 "$root/tmp"
for directory in bin lib lib64; do ln -s "usr/$directory" "$root/$directory"; done

install -m 0755 "$binary" "$root/usr/bin/headwater"
for program in "$@"; do install -m 0755 "$(command -v "$program")" "$root/usr/bin/"; done

files=(/etc/ca-certificates.conf)
for program in "$@"; do files+=("$(command -v "$program")"); done
while read -r library; do
    # Where it really is: /lib is a link on Debian, and in the image.
    directory=$(realpath "$(dirname "$library")")
    install -D -m 0644 "$library" "$root$directory/$(basename "$library")"
    files+=("$library" "$directory/$(basename "$library")" "$(realpath "$library")")
done < <(for file in "$root"/usr/bin/*; do ldd "$file"; done | grep -o '/[^ ]*' | sort -u)
chmod 0755 "$root"/usr/lib64/ld-linux-* 2>/dev/null || true

# Debian knows a library by one of its names only.
for package in $({ dpkg-query --search "${files[@]}" 2>/dev/null || true; } | cut -d : -f 1 | sort -u) ca-certificates; do
    dpkg-query --status "$package" | sed '/^Conffiles:/,$d' >"$root/var/lib/dpkg/status.d/$package"
done
"$here/sbom.py" "$here/../../Cargo.lock" >"$root/usr/share/headwater/sbom.cdx.json"
cp "$here/../../LICENSE" "$root/usr/share/headwater/"

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'headwater:x:65532:65532:headwater:/tmp:/sbin/nologin' >"$root/etc/passwd"
echo 'headwater:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
