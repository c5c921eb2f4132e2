# README.md as the Debian package has it: whoever reads it there has installed it, and what a checkout alone has is left out.
/^## Try it$/,/^## First real use$/{
  /^## First real use$/!d
  i\
What `make` is said to do is done in a checkout of the sources, which this package does not bring.\

}
s/^\*\*1\. Install, at both hosts\.\*\* .*/**1. Install, at both hosts**, the same package: `apt-get install .\/pageferry_VERSION_ARCH.deb` ([Install](docs\/operations.md#install))./
/^| \[docs\/lab\.md\]/d
/^| \[docs\/architecture\.md\]/d
/^| \[pcap-fixtures\/\]/d
s/^| \[CONTRIBUTING\.md\].*/| [changelog.gz](changelog.gz) | what changed |/
s/\[LICENSE\](LICENSE)/[copyright](copyright)/
