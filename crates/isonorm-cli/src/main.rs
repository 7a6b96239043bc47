//! The program `isonorm`; everything is in the library beside it, where tests and fuzz targets reach it.

fn main() -> std::process::ExitCode {
    isonorm_cli::main()
}
