//! IPv6 on links of ours: off where a link carries frames for others, on and quiet where it is routed. Files of `ipv6/conf/LINK`
//! (`Documentation/networking/ip-sysctl.rst`), to be written before the link goes up.

use std::io;

use super::sysctl::Sysctls;

/// No address, route or group of this family on a link that carries frames for others, or has no use for it.
pub(super) fn switch_off(sysctls: &Sysctls, link: &str) -> io::Result<()> {
    write(sysctls, link, &[("disable_ipv6", "1")])
}

/// A router's port: nobody on it configures this host, and its link-local address, from which neighbours are sought, is there at once and
/// not after a second's search for duplicates: nobody but one container is on it.
pub(super) fn serve(sysctls: &Sysctls, link: &str) -> io::Result<()> {
    write(sysctls, link, &[("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")])
}

/// A link on which nobody is to be found by asking: no link-local address either (`IN6_ADDR_GEN_MODE_NONE`), so that it sends nothing by
/// itself.
pub(super) fn carry(sysctls: &Sysctls, link: &str) -> io::Result<()> {
    write(sysctls, link, &[("disable_ipv6", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")])
}

fn write(sysctls: &Sysctls, link: &str, settings: &[(&str, &str)]) -> io::Result<()> {
    for (name, value) in settings {
        match sysctls.write(&format!("ipv6/conf/{link}/{name}"), value) {
            // a kernel without IPv6 has no such files, and nothing to set
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}
