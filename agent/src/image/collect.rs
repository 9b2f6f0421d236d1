//! What goes when room is short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::room::Wanted;
use super::{ImageError, ImageName, Images, Keep, Parts, entries, io, read_named};

impl Images {
    /// Whether less than a quarter of the disk is free, or an image was lately too large for it: until
    /// then what is not needed stays, because it may be wanted again and a link is dearer than a disk.
    pub fn is_short_of_room(&self) -> bool {
        if self.lacks_room.swap(false, Ordering::Relaxed) {
            return true;
        }
        let stat = rustix::fs::statvfs(&self.layers.folder);
        stat.is_ok_and(|stat| stat.f_bavail < stat.f_blocks / 4)
    }

    /// Removes all complete images but these, and what only they need but for these layers; where
    /// asked, also what belongs to no complete image. Pinned images stay, and so does everything
    /// while something is being had: another time will come.
    ///
    /// # Errors
    /// When something would not go; the rest stays, and goes another time.
    pub fn collect(
        &self,
        keep: &[ImageName],
        layers: &BTreeSet<String>,
        orphans: bool,
    ) -> Result<(), ImageError> {
        let Ok(_alone) = self.in_use.try_write() else {
            return Ok(());
        };
        let kept: BTreeSet<PathBuf> = keep.iter().map(|name| self.named(name)).collect();
        let names = entries(&self.names)?;
        let stays = |path: &PathBuf| kept.contains(path) || is_pinned(path);
        let (stay, go): (Vec<_>, Vec<_>) = names.into_iter().partition(stays);
        let (blobs, mut needed) = self.needs(&stay);
        needed.extend(layers.iter().map(|name| self.layers.folder.join(name)));
        let (go_blobs, go_layers) = match orphans {
            true => (entries(&self.blobs.folder)?, entries(&self.layers.folder)?),
            false => {
                let (blobs, layers) = self.needs(&go);
                (blobs.into_iter().collect(), layers.into_iter().collect())
            }
        };
        // What names comes before what is named: a power cut leaves nothing that is half there.
        let go_blobs = go_blobs.into_iter().filter(|path| !blobs.contains(path));
        for path in go.into_iter().chain(go_blobs) {
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        let mut go_layers = go_layers.into_iter().filter(|path| !needed.contains(path));
        go_layers.try_for_each(|path| self.layers.remove(&path))
    }

    /// The blobs and layers that named images stand on.
    fn needs(&self, names: &[PathBuf]) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for named in names.iter().filter_map(|path| read_named(path)) {
            let proof = self.kept_proof(&named);
            blobs.extend(proof.documents().map(|(digest, _)| self.blobs.path(digest)));
            let Some(Parts { manifest, config, file }) = self.parts(&named) else { continue };
            blobs.extend([manifest, config].map(|digest| self.blobs.path(&digest)));
            let found = file.rootfs.diff_ids.iter().filter_map(|id| self.layers.find(id));
            layers.extend(found.map(|name| self.layers.folder.join(name)));
        }
        (blobs, layers)
    }

    /// Takes those layers away that were had for an image that did not fit: they would keep others
    /// from being had. What has found its image meanwhile stays.
    pub(super) fn give_back(&self, had: &[Wanted<'_>]) -> Result<(), ImageError> {
        let Ok(_alone) = self.in_use.try_write() else {
            return Ok(());
        };
        let (_, needed) = self.needs(&entries(&self.names)?);
        let had = had.iter().filter_map(|wanted| self.layers.find(wanted.diff_id));
        let mut go = had.map(|name| self.layers.folder.join(name)).filter(|p| !needed.contains(p));
        go.try_for_each(|path| self.layers.remove(&path))
    }
}

fn is_pinned(path: &Path) -> bool {
    read_named(path).is_some_and(|named| named.keep == Keep::Pinned)
}
