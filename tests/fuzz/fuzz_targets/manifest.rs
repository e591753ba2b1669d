//! Manifests: whatever decodes encodes to something that decodes to the same.
#![no_main]

use imgcache::image::manifest::Manifest;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = Manifest::decode(data) else { return };
    let bytes = manifest.encode().expect("a decoded manifest encodes");
    assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&manifest));
});
