#!/usr/bin/env bash
# Runs the tests on Debian's newest Python, in a root directory made by debootstrap.
#
#   tests/newest.sh              installs all packages there, runs `make test` and checks shapes
#   tests/newest.sh COMMAND      runs COMMAND instead of `make test`
#
# Exits with the exit code of what ran there, or with 77 and the reason if nothing could run.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=trixie
minutes=${NEWEST_MINUTES:-60}

cannot() {
  echo "tests/newest.sh: not run: $*" >&2
  exit 77
}

# Makes the root without mounts: these are made in a namespace, which ends with its last process.
make_root() {
  timeout --foreground 15m debootstrap --variant=minbase --include=python3,python3-venv,make,ca-certificates \
    "$suite" "$root" >"$log" 2>&1 || cannot "debootstrap failed: $(tail -n 1 "$log")"
  mkdir -p "$root/suite"
  git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
    tar --create --null --files-from=- | tar --extract --directory="$root/suite" ||
    cannot "git does not list the files of this clone"
  cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
}

# Copies the host's pip configuration, with the folders and certificates that it names.
copy_pip_configuration() {
  local files=() file path
  for file in /etc/pip.conf /etc/xdg/pip/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf \
    "${PIP_CONFIG_FILE:-}"; do
    if [ -f "$file" ]; then files+=("$file"); fi
  done
  for file in "${files[@]}"; do
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
  done
  { cat "${files[@]}" /dev/null; env | grep '^PIP_' || true; } |
    grep -oE '/[^[:space:],;]+' | sed 's#^/*#/#' | sort -u |
    while read -r path; do
      if [ -f "$path" ]; then
        mkdir -p "$root$(dirname "$path")"
        cp -L "$path" "$root$path"
      elif [ -d "$path" ] && [ "$path" != / ]; then
        # A package index links to wheels beside it, so its parent is mounted.
        case $path in /*/*) path=$(dirname "$path") ;; esac
        mkdir -p "$root$path"
        mount --rbind "$path" "$root$path" || cannot "$path can't be mounted there"
      fi
    done
}

inside() {
  chroot "$root" /usr/bin/env --chdir=/suite --unset=VIRTUAL_ENV --unset=PYTHONPATH \
    LC_ALL=C.UTF-8 TMPDIR=/tmp PYTHON=python3 PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# Runs in the namespace: makes the root, installs the packages and runs the command.
run_suite() {
  make_root
  { mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"; } &&
    mount --rbind /dev "$root/dev" || cannot "/proc and /dev can't be mounted there"
  copy_pip_configuration
  echo "tests/newest.sh: $(inside python3 --version), $suite"
  inside timeout --foreground 30m make .venv/.installed-test || cannot "its packages can't be installed"
  if [ $# = 0 ]; then set -- make test CHECK_SHAPES=1; fi
  inside "$@"
}

if [ "${1:-}" = --in-namespace ]; then
  root=$2
  shift 2
  log=$root.log
  run_suite "$@"
  exit
fi

[ "$(id -u)" = 0 ] || cannot "only root can make a root"
for tool in debootstrap unshare chroot git tar; do
  command -v "$tool" >/dev/null || cannot "there is no $tool"
done
unshare --mount true 2>/dev/null || cannot "this machine allows no mounts"
root=$(mktemp --directory --tmpdir jaxdeblur-newest-XXXXXX)
trap 'rm --recursive --force --one-file-system "$root" "$root.log"' EXIT
timeout --kill-after=60 "${minutes}m" \
  unshare --mount "$BASH" tests/newest.sh --in-namespace "$root" "$@" &
child=$!
trap 'kill "$child"; wait "$child" || true; exit 130' INT TERM
code=0
wait "$child" || code=$?
case $code in
  124 | 137) cannot "its $minutes minutes were not enough" ;;
  *) exit "$code" ;;
esac
