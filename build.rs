//! Tells which Python the module is built for. It is not linked by its path: the loader has opened it before (see loader/).

fn main() {
    pyo3_build_config::use_pyo3_cfgs();
}
