//! Folders of our own.

use crate::error::{Error, Result};
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Makes a folder that only we may enter, if it is not there.
pub fn make_private(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|e| Error::unavailable(format!("folder {} cannot be made: {e}", folder.display())))
}

/// Refuses a folder that somebody else owns or may write to: whoever could put files there could put keys and records there.
pub fn check_own(folder: &Path) -> Result<()> {
    let unfit =
        |why: &str| Error::unavailable(format!("folder {} {why}: it must be this program's own, mode 0700", folder.display()));
    let metadata = folder.metadata().map_err(|e| unfit(&format!("cannot be looked at ({e})")))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(unfit("belongs to another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(unfit("may be written by others"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_own(folder.path()).is_ok());
        set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(check_own(folder.path()).is_err());
        assert!(check_own(Path::new("/proc/1/nothing")).is_err());
    }
}
