//! Where the control socket is, and that nobody else may speak to it.

use std::{
    env,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf, absolute},
    process::id,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    time::timeout,
};

const BACKLOG: u32 = 64;
/// How long one that runs may take to accept.
const CONNECT: Duration = Duration::from_secs(2);

/// Where the socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where the user says.
    Given(PathBuf),
    /// Where the data directory leads to, so that whoever works in the same folder finds it.
    Derived(PathBuf),
}

impl Place {
    /// `given` is `--socket` or `GREENWAVE_SOCKET`.
    pub(crate) fn new(given: Option<&Path>, data_dir: &Path) -> Result<Place> {
        let given = given.map(PathBuf::from).or_else(|| env::var_os("GREENWAVE_SOCKET").map(PathBuf::from));
        if let Some(path) = given.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Place::Given(path));
        }
        let data_dir = absolute(data_dir).context("this folder is gone")?;
        let data_dir = canonical(data_dir);
        let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|folder| Path::new(folder).is_dir());
        Ok(Place::Derived(match runtime {
            Some(folder) => {
                let name = format!("{:016x}.sock", fnv1a(data_dir.as_os_str().as_encoded_bytes()));
                Path::new(&folder).join("greenwave").join(name)
            }
            None => data_dir.join("run/control.sock"),
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::Given(path) | Place::Derived(path) => path,
        }
    }
}

/// The same before and after the folder is made.
fn canonical(folder: PathBuf) -> PathBuf {
    let whole = folder.canonicalize();
    let but_last = || Some(folder.parent()?.canonicalize().ok()?.join(folder.file_name()?));
    whole.ok().or_else(but_last).unwrap_or(folder)
}

/// Short, and the same in every version of this program, which the standard library's hashes are not.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A bound control socket; the file goes when it is dropped.
pub(crate) struct Listener {
    pub listener: UnixListener,
    pub path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Makes the socket, for this user only.
    ///
    /// Where another Greenwave already runs with the same data directory, the second is reached by a path of its own.
    pub(crate) async fn bind(place: &Place) -> Result<Listener> {
        let path = place.path();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            private_folder(folder, matches!(place, Place::Derived(_)))?;
        }
        if !is_taken(path).await? {
            return Listener::bind_free(path);
        }
        match place {
            Place::Given(_) => {
                bail!("a Greenwave already runs at {}: choose another path with --socket", path.display())
            }
            Place::Derived(_) => Listener::bind_free(&path.with_extension(format!("{}.sock", id()))),
        }
    }

    fn bind_free(path: &Path) -> Result<Listener> {
        let bound = || {
            let socket = UnixSocket::new_stream()?;
            socket.bind(path)?;
            // Until `listen`, nobody can connect: there is no moment at which others could.
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok((socket.listen(BACKLOG)?, fs::symlink_metadata(path)?.ino()))
        };
        let (listener, inode) = bound().map_err(|error: io::Error| {
            anyhow::anyhow!(
                "cannot make the control socket {}: {error}; choose another path with --socket",
                path.display()
            )
        })?;
        Ok(Listener { listener, path: absolute(path).unwrap_or_else(|_| path.into()), inode })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another may have taken its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the folder if it is absent; one that we chose must be this user's alone.
fn private_folder(folder: &Path, ours: bool) -> Result<()> {
    let failed = || format!("cannot make {}; choose another path with --socket", folder.display());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(failed)?;
    let metadata = fs::metadata(folder).with_context(failed)?;
    if ours && (metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0) {
        bail!(
            "{} is open to others: make it yours alone (chmod 700), or choose another path with --socket",
            folder.display()
        );
    }
    Ok(())
}

/// Whether somebody listens there; removes what a dead process left.
async fn is_taken(path: &Path) -> Result<bool> {
    // A file of another kind refuses connections too, and is somebody's.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        bail!("{} is no socket; choose another path with --socket", path.display());
    }
    match timeout(CONNECT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            Ok(false)
        }
        Ok(Err(error)) => {
            bail!("{} is no control socket: {error}; choose another path with --socket", path.display())
        }
        Ok(Ok(_)) | Err(_) => Ok(true),
    }
}

/// A connection to the Greenwave that runs at this place.
pub(crate) async fn connect(place: &Place) -> Result<UnixStream> {
    let path = place.path().display();
    match timeout(CONNECT, UnixStream::connect(place.path())).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => bail!(
                "nothing runs at {path}: start it with `greenwave up`, or say with --socket where it runs (it prints the path)"
            ),
            io::ErrorKind::PermissionDenied => bail!("{path} is another user's: {error}"),
            _ => bail!("cannot reach {path}: {error}"),
        },
        Err(_) => bail!("the greenwave at {path} does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_processs_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&Place::Derived(path.clone())).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let second = Listener::bind(&Place::Derived(path.clone())).await.unwrap();
        assert_ne!(second.path, first.path);
        assert!(Listener::bind(&Place::Given(path.clone())).await.is_err());
        drop(first);
        assert!(!path.exists());
        fs::write(&path, "a file of somebody's").unwrap();
        assert!(Listener::bind(&Place::Given(path.clone())).await.is_err());
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_folder_that_others_may_enter_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let refused = Listener::bind(&Place::Derived(folder.path().join("s"))).await;
        assert!(refused.err().unwrap().to_string().contains("open to others"));
    }
}
