#!/bin/bash
# nested-kvm.sh: run a command on a machine whose /dev/kvm is stock Linux KVM, on a machine with none, or with another one.
#
#   nested-kvm.sh [OPTION...] -- COMMAND [ARGUMENT...]
#
#   --vendor amd|intel  amd:   kvm_amd   under QEMU's TCG  (SVM, nested paging)            default
#                       intel: kvm_intel under Bochs       (VMX, EPT, unrestricted guest)
#   --dir DIR           its contents are COMMAND's working directory; binaries in it must be static
#   --gdb               there is a gdb in it
#   --smp N             CPUs of the emulated machine (amd: 2, intel: 1; more of them start slower)
#   --mem MB            its memory (1024)
#   --timeout S         limit, in seconds of this machine's time (amd: 300, intel: 900)
#   --silence S         end it, without a result, when nothing has come out for so many of them (never)
#   --console FILE      keep its kernel log
#   --prepare           fetch and unpack what is needed, run nothing
#
# A stock Debian kernel boots with its own KVM modules, and COMMAND runs in it: a file of DIR (./x) or a busybox applet. Its
# stdout and stderr come out here, its exit code is that of this script. 124: the limit was reached. 125: no result, the end
# of the kernel log is on stderr. Output comes over emulated serial lines: 0.5 MB/s on amd, 7 KB/s on intel.
#
# Debian packages are fetched with apt-get and unpacked into $NESTED_KVM_CACHE (~/.cache/nested-kvm), the emulators and the
# tools that make the boot image are installed: for both, run this as root, or have them already: cpio, xz-utils; for amd
# qemu-system-x86; for intel bochs, bochs-term, isolinux, syslinux-common, xorriso, lz4; for --gdb, gdb.
set -euo pipefail

die() {
  echo "nested-kvm: $*" >&2
  exit 125
}

# ---------------------------------------------------------------------------------------------------- arguments

vendor=amd dir= smp= memory=1024 limit= silence= console= gdb= prepare=
while (($#)); do
  case $1 in
    --vendor | --dir | --smp | --mem | --timeout | --silence | --console) (($# > 1)) || die "$1 needs a value" ;;
  esac
  case $1 in
    --vendor) vendor=$2 && shift 2 ;;
    --dir) dir=$2 && shift 2 ;;
    --smp) smp=$2 && shift 2 ;;
    --mem) memory=$2 && shift 2 ;;
    --timeout) limit=$2 && shift 2 ;;
    --silence) silence=$2 && shift 2 ;;
    --console) console=$2 && shift 2 ;;
    --gdb) gdb=1 && shift ;;
    --prepare) prepare=1 && shift ;;
    --) shift && break ;;
    -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \?//' && exit 0 ;;
    *) die "unknown option $1, see --help" ;;
  esac
done
case $vendor in
  amd) : "${smp:=2}" "${limit:=300}" ;;
  intel) : "${smp:=1}" "${limit:=900}" ;;
  *) die "--vendor is amd or intel, not $vendor" ;;
esac
[[ -n $prepare || $# -gt 0 ]] || die "no command, see --help"

cache=${NESTED_KVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nested-kvm}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# ---------------------------------------------------------------------------------------------------- what is needed, once

apt_options=()

with_update() { # COMMAND...: again after an update, where the package lists are missing or old
  "$@" || { apt-get update -qq >&2 && "$@"; }
}

install() { # PACKAGE...
  DEBIAN_FRONTEND=noninteractive with_update apt-get install -qq -y --no-install-recommends "$@" >&2
}

is_ready() { [[ -e $cache/$1/.ready ]]; }
set_ready() { touch "$cache/$1/.ready"; }

unpack() { # NAME PACKAGE...: Debian packages into $cache/NAME, not installed
  local name=$1 deb
  shift
  rm -rf "${cache:?}/$name" "$cache/debs"
  mkdir -p "$cache/$name" "$cache/debs"
  (cd "$cache/debs" && with_update apt-get -qq "${apt_options[@]}" -o APT::Sandbox::User=root download "$@" >&2)
  for deb in "$cache"/debs/*.deb; do dpkg-deb -x "$deb" "$cache/$name"; done
  rm -rf "$cache/debs"
}

kernel_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }'; }

prepare_kernel() {
  local package module
  package=$(kernel_package)
  [[ -n $package ]] || { apt-get update -qq >&2 && package=$(kernel_package); }
  [[ -n $package ]] || die "no package linux-image-cloud-amd64 to be had"
  unpack kernel.deb "$package"
  mkdir -p "$cache/kernel"
  cp "$cache"/kernel.deb/boot/vmlinuz-* "$cache/kernel/vmlinuz"
  for module in irqbypass kvm kvm-amd kvm-intel; do
    find "$cache/kernel.deb" -name "$module.ko*" -exec cp {} "$cache/kernel/" \;
  done
  find "$cache/kernel" -name '*.xz' -exec xz -d {} +
  rm -rf "$cache/kernel.deb"
  echo "$package" >"$cache/kernel/version"
  set_ready kernel
}

qemu_version() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p; q' || true; }

# QEMU before 10 does not arm the debug registers that VMRUN loads: no hardware breakpoints in guests. Debian 12 has a newer
# one in its backports, beside the archive that the machine already uses.
prepare_newer_qemu() {
  local apt=$cache/apt codename mirror
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep '/debian/\?$' | head -n 1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no Debian archive} $codename-backports main" >"$apt/list"
  apt_options=(-o "Dir::Etc::sourcelist=$apt/list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
  if apt-get -qq "${apt_options[@]}" update >&2 &&
    unpack qemu {qemu-system-x86,qemu-system-data,seabios}/"$codename-backports"; then
    set_ready qemu
  else
    touch "$cache/qemu.none"
  fi
  apt_options=()
  rm -rf "$apt"
}

qemu=(qemu-system-x86_64)

prepare_amd() {
  local version new=$cache/qemu/usr
  version=$(qemu_version)
  if [[ ${version:-0} -ge 10 ]]; then return; fi
  is_ready qemu || [[ -e $cache/qemu.none ]] || prepare_newer_qemu
  [[ -n $version ]] || install qemu-system-x86 # and with it the libraries that the newer one needs too
  if is_ready qemu && "$new/bin/qemu-system-x86_64" --version >/dev/null 2>&1; then
    qemu=("$new/bin/qemu-system-x86_64" -L "$new/share/qemu" -L "$new/share/seabios")
  fi
}

prepare_intel() {
  if ! [[ -x /usr/bin/bochs-bin && -e /usr/lib/ISOLINUX/isolinux.bin && -x /usr/bin/xorriso && -x /usr/bin/lz4 ]]; then
    install bochs bochs-term isolinux syslinux-common xorriso lz4
  fi
  is_ready bios || { unpack bios bochsbios vgabios && set_ready bios; }
}

write_init() { # FILE: what runs as the first process
  cat >"$1" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/w
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs t /tmp
for m in irqbypass kvm kvm-amd kvm-intel; do [ -e /m/$m.ko ] && insmod /m/$m.ko; done
for t in 1 2 3; do stty -F /dev/ttyS$t 115200 raw -echo; done
echo "nested-kvm: up after $(cut -d' ' -f1 /proc/uptime) s, $(ls /dev/kvm)"
cd /w
mkfifo /tmp/1 /tmp/2
cat /tmp/1 >/dev/ttyS1 &
cat /tmp/2 >/dev/ttyS2 &
# Through pipes, as here: no terminal on which a command would show its progress.
if [ -c /dev/kvm ]; then sh /command </dev/null >/tmp/1 2>/tmp/2; code=$?; wait; else code=nokvm; fi
echo "code=$code" >/dev/ttyS3
echo "nested-kvm: end after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
INIT
  chmod +x "$1"
}

prepare_base() { # the part of the boot image that all commands share
  local root=$cache/base-$vendor module
  rm -rf "$root"
  mkdir -p "$root"/{bin,m,w,tmp,proc,sys,dev}
  find "$cache/busybox" -path '*bin/busybox' -type f -exec cp {} "$root/bin/" \;
  for module in irqbypass kvm "kvm-$vendor"; do
    # Without the mark that a signature follows: checking one takes seconds in Bochs.
    head -c -28 "$cache/kernel/$module.ko" >"$root/m/$module.ko"
  done
  write_init "$root/init"
  (cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$cache/base-$vendor.new"
  mv "$cache/base-$vendor.new" "$cache/base-$vendor.cpio"
  rm -rf "$root"
}

# One without Python: it needs nothing but its libraries, which are among those of this machine's own gdb.
prepare_gdb() {
  local root=$cache/base-gdb files
  unpack gdb gdb-minimal
  ldd "$cache/gdb/usr/bin/gdb" | grep -q 'not found' && install gdb
  mapfile -t files < <(ldd "$cache/gdb/usr/bin/gdb" | grep -o '/[^ ]*')
  rm -rf "$root"
  mkdir -p "$root/bin"
  cp "$cache/gdb/usr/bin/gdb" "$root/bin/"
  cp -L --parents "${files[@]}" "$root/"
  (cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$cache/base-gdb.cpio"
  rm -rf "$root"
  set_ready gdb
}

prepare_all() {
  local missing=()
  command -v cpio >/dev/null || missing+=(cpio)
  command -v xz >/dev/null || missing+=(xz-utils)
  [[ ${#missing[@]} == 0 ]] || install "${missing[@]}"
  is_ready kernel || prepare_kernel
  is_ready busybox || { unpack busybox busybox-static && set_ready busybox; }
  "prepare_$vendor"
  [[ -z $gdb ]] || is_ready gdb || prepare_gdb
  [[ -e $cache/base-$vendor.cpio && ! $0 -nt $cache/base-$vendor.cpio ]] || prepare_base
}

exec 8>"$cache/lock"
flock 8
prepare_all
flock -u 8
[[ -z $prepare || $# -gt 0 ]] || exit 0

# ---------------------------------------------------------------------------------------------------- one run

work=$(mktemp -d "${TMPDIR:-/tmp}/nested-kvm.XXXXXX")
started=()
clean_up() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

boot_image() { # COMMAND [ARGUMENT...]: $work/initrd
  local argument
  mkdir "$work/root"
  for argument; do printf "'%s' " "${argument//\'/\'\\\'\'}"; done >"$work/root/command"
  echo >>"$work/root/command"
  {
    cat "$cache/base-$vendor.cpio" ${gdb:+"$cache/base-gdb.cpio"}
    (cd "$work/root" && find . -type f | cpio -o -H newc -R 0:0 --quiet)
    if [[ -n $dir ]]; then
      ln -s "$(cd "$dir" && pwd)" "$work/w"
      (cd "$work" && find -L w | cpio -o -L -H newc -R 0:0 --quiet)
    fi
  } >"$work/initrd"
}

kernel_options="panic=-1 ${NESTED_KVM_LOGLEVEL:-quiet} mitigations=off nokaslr cryptomgr.notests=1 audit=0 lsm= nmi_watchdog=0"
kernel_options+=" rcupdate.rcu_expedited=1 tsc=reliable no_timer_check ${NESTED_KVM_APPEND:-}"

start_amd() {
  timeout -k 5 "$limit" "${qemu[@]}" -accel tcg,thread=multi -cpu max,svm=on,npt=on -smp "$smp" -m "$memory" \
    -nodefaults -no-user-config -display none -no-reboot \
    -serial "file:$work/console" -serial "file:$work/stdout" -serial "file:$work/stderr" -serial "file:$work/code" \
    -kernel "$cache/kernel/vmlinuz" -initrd "$work/initrd" -append "console=ttyS0 $kernel_options" \
    </dev/null >"$work/log" 2>&1 &
}

start_intel() {
  local boot=$work/iso/isolinux
  mkdir -p "$boot"
  # Unpacked in half the time that gzip takes there; the kernel reads the old format only.
  lz4 -q -l -1 "$work/initrd" "$boot/initrd.lz4"
  cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$cache/kernel/vmlinuz" "$boot/"
  printf 'default l\nprompt 0\ntimeout 1\nlabel l\n kernel vmlinuz\n initrd initrd.lz4\n append %s\n' \
    "console=ttyS0,115200 $kernel_options" >"$boot/isolinux.cfg"
  xorriso -as mkisofs -quiet -o "$work/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$work/iso" >"$work/xorriso" 2>&1 || die "$(cat "$work/xorriso")"
  write_bochsrc "$work/bochsrc"
  # Debian's Bochs starts in its debugger, which is told to continue and then reads on from a pipe that never ends.
  echo c >"$work/debugger"
  mkfifo "$work/in"
  exec 9<>"$work/in"
  timeout -k 5 "$limit" bochs-bin -q -f "$work/bochsrc" -rc "$work/debugger" <"$work/in" >"$work/bochs" 2>&1 9>&- &
}

write_bochsrc() { # FILE
  cat >"$1" <<RC
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, gameport=0, iodebug=0
config_interface: textconfig
display_library: rfb, options="timeout=0"
memory: guest=$memory, host=$memory
romimage: file=$cache/bios/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$cache/bios/usr/share/vgabios/vgabios-stdvga.bin
cpu: model=${NESTED_KVM_BOCHS_CPU:-corei7_haswell_4770}, count=$smp, ips=${NESTED_KVM_BOCHS_IPS:-50000000}, quantum=16, reset_on_triple_fault=0
clock: sync=none, time0=1700000000
com1: enabled=1, mode=file, dev=$work/console
com2: enabled=1, mode=file, dev=$work/stdout
com3: enabled=1, mode=file, dev=$work/stderr
com4: enabled=1, mode=file, dev=$work/code
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
log: $work/log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
RC
}

end_when_silent() {
  while sleep 1; do
    if (($(date +%s) - $(stat -c %Y "$work/heard") > silence)); then
      echo "nested-kvm: nothing came out for $silence s" >&2
      kill "$emulator"
    fi
  done
}

# The emulator writes the command's output into pipes that are read here, so that it appears as it comes.
boot_image "$@"
mkfifo "$work/stdout" "$work/stderr"
touch "$work/heard"
tee "$work/heard" <"$work/stdout" &
started+=($!)
cat "$work/stderr" >&2 &
started+=($!)
readers=("${started[@]}")
"start_$vendor"
emulator=$!
started+=("$emulator")
if [[ -n $silence ]]; then
  end_when_silent &
  started+=($!)
fi
status=0
wait "$emulator" || status=$?

# Let the readers finish; one that still waits for a writer (the emulator never came up) is ended by clean_up.
for reader in "${readers[@]}"; do
  for _ in {1..20}; do kill -0 "$reader" 2>/dev/null && sleep 0.05 || break; done
done
[[ -z $console ]] || cp "$work/console" "$console" || true

code=$(head -c 40 "$work/code" 2>/dev/null | tr -d '\r' | sed -n '1s/^code=\([0-9]\+\)$/\1/p' || true)
if [[ -z $code ]]; then
  tail -n 15 "$work/console" >&2 2>/dev/null || true
  tail -n 5 "$work/log" >&2 2>/dev/null || true
  [[ $status != 124 ]] || { echo "nested-kvm: limit of $limit s reached" >&2 && exit 124; }
  die "no result (the emulator's exit code was $status)"
fi
exit "$code"
