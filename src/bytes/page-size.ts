/**
 * Bytes in one guest page, everywhere: what QEMU sends, what the pool compares, what template sets hold. TARGET_PAGE_SIZE
 * on x86-64, aarch64 virt, s390x, ppc64, riscv. (AssemblyScript reads this file too: src/kernel/constants.ts.)
 */
export const PAGE_SIZE = 4096
