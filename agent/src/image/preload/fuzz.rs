//! What fuzzing feeds the reader of archives of images with.

use std::io::Read;

use super::*;

/// Looks through the archive in a file, and reads what it offers as far as `bytes_max` a layer.
pub(in crate::image) fn archive(path: &Path, bytes_max: u64) {
    let Ok(files) = Files::open(path) else {
        return;
    };
    let here = "linux/amd64".parse().ok();
    let layout = here.map(|here| oci::offered(&files, &here));
    for offered in [Some(docker::offered(&files)), layout].into_iter().flatten() {
        match offered.and_then(|offered| named(&files, offered, None)) {
            Ok(offered) => offered.iter().for_each(|image| layers(&files, image, bytes_max)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn layers(files: &Files, image: &Offered, bytes_max: u64) {
    for layer in &image.manifest.layers {
        let packed = image.files.get(&layer.digest).map(|f| Passing::new(files, f, layer, &|_| {}));
        if let Some(Ok(packed)) = packed {
            let read = std::io::copy(&mut packed.take(bytes_max), &mut std::io::sink());
            assert!(read.is_err() || read.is_ok_and(|read| read <= layer.size));
        }
    }
}
