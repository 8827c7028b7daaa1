//! Files below `/proc/sys/net`. They show the network namespace of the thread that opens them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use parking_lot::Mutex;

use crate::model::{Key, Object};

/// The sysctls that are wanted, with their last known values. The kernel sends no news of most of them (`route_localnet`), and `/proc` has
/// no inotify: they are read again and again, 3 µs each.
#[derive(Default)]
pub(super) struct Watched(Mutex<BTreeMap<Key, String>>);

impl Watched {
    /// Those of `wanted` are watched from now on, and no others.
    pub fn expect(&self, sysctls: &Sysctls, wanted: &[Key]) {
        let known = wanted.iter().filter_map(|key| Some((key.clone(), sysctls.read(path_of(key)?).unwrap_or_default())));
        *self.0.lock() = known.collect();
    }

    pub fn add(&self, key: Key, value: &str) {
        self.0.lock().insert(key, value.to_owned());
    }

    pub fn remove(&self, key: &Key) {
        self.0.lock().remove(key);
    }

    /// Those whose values are others than before. What cannot be read went with its link, which is told by other news.
    pub fn changed(&self, sysctls: &Sysctls) -> Vec<Object> {
        let mut watched = self.0.lock();
        let mut changed = Vec::new();
        for (key, known) in watched.iter_mut() {
            let Some(Ok(value)) = path_of(key).map(|path| sysctls.read(path)) else { continue };
            if value != *known {
                known.clone_from(&value);
                changed.extend(as_object(key, value));
            }
        }
        changed
    }
}

/// Of a sysctl, its path.
fn path_of(key: &Key) -> Option<&str> {
    match key {
        Key::HostSysctl(path) | Key::LinkSysctl(path) => Some(path),
        _ => None,
    }
}

/// The sysctl of this key with this value.
pub(super) fn as_object(key: &Key, value: String) -> Option<Object> {
    match key {
        Key::HostSysctl(path) => Some(Object::HostSysctl { path: path.clone(), value }),
        Key::LinkSysctl(path) => Some(Object::LinkSysctl { path: path.clone(), value }),
        _ => None,
    }
}

/// Where `/proc/sys/net` is writable: a managed plugin's own is read-only, and the host's is mounted elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Sysctls(PathBuf);

impl Sysctls {
    pub fn new(proc_sys_net: PathBuf) -> Self {
        Sysctls(proc_sys_net)
    }

    /// The value, without the line's end. `path` is below `/proc/sys/net`.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let file = self.file(path)?;
        let text = fs::read_to_string(&file).map_err(|error| at(&file, &error))?;
        Ok(text.trim().to_owned())
    }

    /// Writes `value` where another one stands.
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        // What cannot be read may still be writable.
        if self.read(path).is_ok_and(|old| old == value) {
            return Ok(());
        }
        let file = self.file(path)?;
        fs::write(&file, value).map_err(|error| at(&file, &error))
    }

    /// Writes what a user asked for a container's link: `net.ipv4.conf.IFNAME.log_martians`, or the same with slashes.
    pub fn write_for(&self, link: &str, name: &str, value: &str) -> io::Result<()> {
        let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
        let Some(path) = path.strip_prefix("net/") else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("sysctl {name} is not one of net: only those belong to a link"),
            ));
        };
        self.write(&path.replace("IFNAME", link), value)
    }

    fn file(&self, path: &str) -> io::Result<PathBuf> {
        let plain = !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if plain {
            return Ok(self.0.join(path));
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("sysctl {path} leads out of net")))
    }
}

fn at(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_of_a_user_stays_below_net() {
        let sysctls = Sysctls::new("/nonexistent".into());
        for bad in ["kernel.hostname", "net/../kernel/hostname", "net//etc", "net.", "net/"] {
            let error = sysctls.write_for("net0", bad, "1").unwrap_err();
            assert!([io::ErrorKind::InvalidInput, io::ErrorKind::NotFound].contains(&error.kind()), "{bad}: {error}");
        }
    }

    #[test]
    fn a_sysctl_that_somebody_alters_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let (sysctls, watched) = (Sysctls::new(dir.path().into()), Watched::default());
        let (key, gone) = (Key::HostSysctl("forward".into()), Key::LinkSysctl("gone".into()));
        sysctls.write("forward", "1").unwrap();
        watched.expect(&sysctls, &[key, gone]);
        assert_eq!(watched.changed(&sysctls), []);
        sysctls.write("forward", "0").unwrap();
        assert_eq!(watched.changed(&sysctls), [Object::HostSysctl { path: "forward".into(), value: "0".into() }]);
        assert_eq!(watched.changed(&sysctls), []);
    }

    #[test]
    fn the_name_of_a_link_may_hold_dots() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ipv4/conf/a.b")).unwrap();
        Sysctls::new(dir.path().into()).write_for("a.b", "net.ipv4.conf.IFNAME.log_martians", "1").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("ipv4/conf/a.b/log_martians")).unwrap(), "1");
    }
}
