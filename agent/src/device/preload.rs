//! Images that a person on site brings in a file.

use std::path::PathBuf;
use std::sync::Arc;

use smol::channel::{Receiver, Sender};

use super::effects::Shell;
use crate::image::{ImageName, Images, NameError, Progress};
use crate::local::PreloadNews;

/// News that waits for whoever asked; progress beyond it is not told.
const NEWS: usize = 64;

impl Shell {
    /// Takes images from a file or folder; what comes of it is news.
    pub(super) fn preload(&self, file: PathBuf, name: Option<String>) -> Receiver<PreloadNews> {
        let (news, told) = smol::channel::bounded(NEWS);
        let images = Arc::clone(&self.images);
        self.spawn(smol::unblock(move || {
            let outcome = match take_in(&images, &file, name, &news) {
                Ok(preloaded) => preloaded.into_iter().map(PreloadNews::Preloaded).collect(),
                Err(why) => vec![PreloadNews::Failed(why)],
            };
            // Whoever asked may have gone.
            outcome.into_iter().for_each(|outcome| drop(news.send_blocking(outcome)));
        }));
        told
    }

    /// Lets go of an image that was preloaded.
    pub(super) fn unpin(&self, name: &str) -> Result<(), String> {
        let name: ImageName = name.parse().map_err(|error: NameError| error.to_string())?;
        match self.images.unpin(&name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{name} is not preloaded: `--list` shows what is")),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn take_in(
    images: &Images,
    file: &std::path::Path,
    name: Option<String>,
    news: &Sender<PreloadNews>,
) -> Result<Vec<String>, String> {
    let name: Option<ImageName> =
        name.map(|name| name.parse()).transpose().map_err(|error: NameError| error.to_string())?;
    let tell = |Progress { received, total }: Progress| {
        let _ = news.try_send(PreloadNews::Progress(received, total));
    };
    let preloaded = images.preload(file, name.as_ref(), &tell);
    let preloaded = preloaded.map_err(|error| error.to_string())?;
    Ok(preloaded.iter().map(ToString::to_string).collect())
}
