#!/usr/bin/env bash
# Tries the npm tarball: packs it, installs it into empty folders with the registry, and uses it. Two minutes.
#
#   scripts/package/test-npm.sh
#
# Once as `npm install -g` does it, and once without scripts, as sites do that let packages run nothing: then the fastest
# LZ4 codec is not built, which the program must say. The last line is `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
root=$PWD
# shellcheck source=scripts/package/counting.sh
. scripts/package/counting.sh
command -v npm > /dev/null || fail 'npm is not installed' 'apt-get install npm'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# prepack builds dist/, which a checkout has no use for
had_dist=$([ -d dist ] && echo yes)
pack() { npm pack --pack-destination "$work"; }
ok 'npm pack' pack
[ -n "$had_dist" ] || rm -rf dist
version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)
tarball=$work/pageferry-$version.tgz
[ -f "$tarball" ] || fail 'there is no tarball' 'look at the lines above'
no_sources() { ! tar -tzf "$tarball" | grep -E '^package/(src|test|scripts|\.)|\.map$'; }
ok 'the tarball has what runs, and no sources' no_sources

# outside of the checkout, with nothing of it in the environment; npm itself needs the registry and the proxies of whoever asks
clean() { env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="$work/home" LC_ALL=C.UTF-8 "$@"; }
mkdir "$work/home"
cd "$work" || exit 1
zstd -dcq "$root/pcap-fixtures/streams/qemu-7.2-precopy.main.zst" > "$work/stream"

for way in scripts no-scripts; do
  prefix=$work/$way
  options=(--no-fund --no-audit --no-progress)
  [ "$way" = scripts ] || options+=(--ignore-scripts)
  ok "$way: npm install -g into an empty folder" npm install -g "${options[@]}" --prefix "$prefix" "$tarball"
  pageferry=$prefix/bin/pageferry
  said_version() { [ "$(clean "$pageferry" --version)" = "$version" ]; }
  ok "$way: pageferry --version" said_version
  about() {
    clean "$pageferry" --version --json > "$work/about" && cat "$work/about" &&
      grep -q '"modules": *"137"' "$work/about" && grep -q '"implementation": *"simd"' "$work/about" &&
      grep -q '"zstd"' "$work/about" && grep -Eq "\"implementation\": *\"lz4(-napi)?\"" "$work/about"
  }
  ok "$way: --version --json: Node 24, the SIMD kernel, an LZ4 codec" about
  # which one it is: as the codec says it is, and as the addon loads
  honest() {
    local fast=false node
    node=$(echo "$prefix"/lib/node_modules/pageferry/node_modules/node-linux-*/bin/node)
    clean "$node" -e 'require(process.argv[1])' "$prefix/lib/node_modules/pageferry/node_modules/lz4" 2> /dev/null && fast=true
    tr -d ' \n' < "$work/about" | grep -F "\"lz4\":{\"implementation\":\"$([ $fast = true ] && echo lz4 || echo lz4-napi)\",\"isFast\":$fast}" &&
      { [ "$way" = scripts ] || [ $fast = false ]; }
  }
  ok "$way: it says whether the fast LZ4 codec runs: $(tr -d ' \n' < "$work/about" | grep -o '"lz4":{[^}]*}')" honest
  for effort in 1 3; do
    round_trip() {
      clean "$pageferry" encode "$root/pcap-fixtures/qemu-7.2-precopy.pcap" -o "$work/encoded" --effort "$effort" &&
        clean "$pageferry" decode "$work/encoded" -o "$work/decoded" && cmp "$work/stream" "$work/decoded"
    }
    rm -f "$work/encoded" "$work/decoded"
    ok "$way: encode and decode a capture, effort $effort" round_trip
  done
  ok "$way: keygen" clean "$pageferry" keygen x509 --dir "$work/keys-$way" --name near --peer-name far 127.0.0.1
  checks() {
    clean "$pageferry" destination --listen tcp:127.0.0.1:0 --target tcp:127.0.0.1:4444 --tls-creds "$work/keys-$way/far" --check
  }
  ok "$way: destination --check" checks
done
counted
