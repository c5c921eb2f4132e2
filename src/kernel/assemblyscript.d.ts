/** AssemblyScript's names for numbers, for the file that both kernels import: to TypeScript all of them are numbers. */
declare type u8 = number
declare type u32 = number
declare type i32 = number
