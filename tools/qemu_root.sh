#!/bin/sh
# Unpack a newer QEMU than the system's into a folder of its own; nothing is installed.
#
#   tools/qemu_root.sh [FOLDER]
#
# Debian 12's QEMU 7.2 translates no DMA with AMD-Vi, has no first stage of VT-d, no igb and no
# vfio-user client; the one in trixie-backports has them all. It is fetched from the mirror that
# this machine's own apt uses, checked by apt as ever, and taken apart together with the libraries
# it needs, down to the C library, so that it runs beside any system:
#
#   VFIOKIT_LAB_QEMU=FOLDER vfiokit lab run -- ...
#
# Needs apt and dpkg but no privilege. The folder, ~/.cache/vfiokit/qemu-root when none is named,
# takes 300 MB. Does nothing when it is there already; remove it to get a newer one. Prints the
# folder; status 1 says on standard error why there is none.
set -eu
suite=trixie
packages="qemu-system-x86 seabios ipxe-qemu"
folder=${1:-${VFIOKIT_QEMU_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/vfiokit/qemu-root}}
stamp=.vfiokit-qemu-root

say() { printf 'qemu: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if [ -e "$folder/$stamp" ]; then echo "$folder"; exit 0; fi
if [ -e "$folder" ]; then fail "$folder exists and holds something else"; fi
for tool in apt-get dpkg; do
    command -v $tool >/dev/null 2>&1 || fail "no $tool here; name a newer QEMU in VFIOKIT_LAB_QEMU"
done

# Two set-ups at once would get into each other's way.
mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9
if [ -e "$folder/$stamp" ]; then echo "$folder"; exit 0; fi

mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    sed -n 's|^\([^ ]*/debian/*\) [a-z]*$|\1|p' | head -n 1)
[ -n "$mirror" ] || fail "apt's sources on this machine name no Debian mirror"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e $keyring ] || fail "no $keyring; install debian-archive-keyring"

# Where apt keeps what it knows about this foreign suite: away from the system's own.
work=$folder.partial
rm -rf "$work"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/etc/preferences.d" \
    "$work/root"
: >"$work/status"
for name in $suite $suite-backports; do
    echo "deb [signed-by=$keyring arch=amd64 target=Packages] $mirror $name main"
done >"$work/etc/sources.list"
printf 'Package: *\nPin: release n=%s-backports\nPin-Priority: 990\n' $suite >"$work/etc/preferences"
apt() {
    apt-get -qq -o Dir::State="$work/state" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist="$work/etc/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferences="$work/etc/preferences" \
        -o Dir::Etc::preferencesparts="$work/etc/preferences.d" \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User= \
        -o APT::Install-Recommends=false -o Debug::NoLocking=true -o APT::Update::Post-Invoke::= \
        "$@"
}

say "fetching QEMU of $suite-backports from $mirror"
apt update >&2 || fail "apt cannot read $suite and $suite-backports there"
# Nothing counts as installed, so the libraries come too.
# shellcheck disable=SC2086
apt install --download-only -y $packages >&2 || fail "apt cannot fetch it"
for package in "$work"/cache/archives/*.deb; do
    # Programs run by the system's set-up, documentation and the like stay packed.
    dpkg-deb --fsys-tarfile "$package" |
        tar -x -C "$work/root" --no-same-owner --exclude='./usr/share/doc' \
            --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./dev/*'
done
touch "$work/root/$stamp"
mv "$work/root" "$folder"
say "$(du -sm "$folder" | cut -f1) MB in $folder"
echo "$folder"
