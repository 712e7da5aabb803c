#!/bin/sh
# Prepare .venv with vfiokit and everything it needs, and say what was done.
#
#   tools/setup.sh run     enough to use vfiokit
#   tools/setup.sh dev     also the tools and Debian packages that the tests use
#   tools/setup.sh fuzz    also the fuzzer
#
# Idempotent: does nothing when the environment is newer than pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
level=${1:-run}
stamp=.venv/.vfiokit-$level

say() { printf 'setup: %s\n' "$*" >&2; }

install_packages() {
    # Debian packages, when we may; otherwise say what will be missing.
    command -v apt-get >/dev/null 2>&1 || { say "no apt-get here; please install: $*"; return 1; }
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then sudo=sudo
        else say "not root; please install: $*"; return 1; fi
    else sudo=; fi
    say "installing Debian packages: $*"
    $sudo apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if [ "$level" != run ]; then
    # lspci reads our captures as an independent witness; gcc compiles the ABI probe and the C
    # floor of the benchmarks against the installed kernel headers; QEMU runs a real kernel.
    missing=
    command -v lspci >/dev/null 2>&1 || [ -x /usr/bin/lspci ] || missing="$missing pciutils"
    command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
    command -v cpio >/dev/null 2>&1 || missing="$missing cpio"
    command -v qemu-system-x86_64 >/dev/null 2>&1 || missing="$missing qemu-system-x86"
    [ -e /usr/include/linux/vfio.h ] || missing="$missing linux-libc-dev"
    # libvirt's own schemas say whether a domain is one.
    [ -e /usr/share/libvirt/schemas/domain.rng ] || missing="$missing libvirt0"
    # The report page is tried in a real browser.
    command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
    command -v chromedriver >/dev/null 2>&1 || missing="$missing chromium-driver"
    command -v pdftoppm >/dev/null 2>&1 || missing="$missing poppler-utils"
    command -v dot >/dev/null 2>&1 || missing="$missing graphviz"
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086
        install_packages $missing || say "tests that need these will be skipped"
    fi
fi

if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ]; then exit 0; fi

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"; return
        fi
    done
}

if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || { say "creating .venv with uv"; uv venv -q --python '>=3.11' .venv; }
    pip() { uv pip "$@" --python .venv/bin/python; }
else
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        if [ -z "$python" ]; then
            install_packages python3 python3-venv || { say "Python 3.11 or newer is needed"; exit 1; }
            python=python3
        fi
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            install_packages python3-venv || { say "$python has no venv module"; exit 1; }
        fi
        say "creating .venv with $($python --version)"
        "$python" -m venv .venv
    fi
    pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
fi

case $level in
run) extras= ;;
dev) extras='[dev]' ;;
fuzz) extras='[dev,fuzz]' ;;
*) say "no such level: $level"; exit 2 ;;
esac
say "installing vfiokit$extras into .venv"
pip install -q -e ".$extras"
touch "$stamp"
say "ready: .venv/bin/vfiokit ($(.venv/bin/python --version))"
