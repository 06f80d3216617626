//! Pictures against Pillow and torchvision (`conformance/make_images.py`), against hostile files, and through the tiny package that
//! sees.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highroad_data::{Image, ImageError};
use highroad_package::{Package, VerifiedPackage, pack};
use highroad_task::{Answer, Input, Predictor, PredictorOptions, Sharing, TaskError};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

fn conformance(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance").join(file)
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(conformance("images").join(name)).unwrap()
}

fn input(name: &str) -> Input {
    Input::Image(Arc::from(picture(name)))
}

/// The tiny package, with `change` made to its `package.toml`.
fn package(change: impl FnOnce(String) -> String) -> Result<VerifiedPackage, String> {
    let dir = tempfile::tempdir().unwrap().keep();
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    for file in ["program.pt2", "parity.safetensors"] {
        fs::copy(conformance("packages/vision").join(file), source.join(file)).unwrap();
    }
    let toml = fs::read_to_string(conformance("packages/vision/package.toml")).unwrap();
    fs::write(source.join("package.toml"), change(toml)).unwrap();
    pack(&source, &dir.join("package")).map_err(|error| error.to_string())?;
    Ok(Package::open(&dir.join("package")).unwrap().verify().unwrap())
}

fn open(threads: usize) -> Predictor {
    let options = PredictorOptions { threads: NonZeroUsize::new(threads).unwrap(), ..PredictorOptions::default() };
    Predictor::open(&package(|toml| toml).unwrap(), &options).unwrap()
}

mod preparation {
    use highroad_package::ImageInput;
    use highroad_task::pixel_values;

    use super::*;

    /// The pixels of every case that Pillow decoded with the same bits, and how far those of the others are.
    #[test]
    fn pixels_are_those_of_pillow_and_torchvision() {
        let cases: Vec<Value> = serde_json::from_slice(&picture("cases.json")).unwrap();
        let expected = picture("expected.safetensors");
        let expected = SafeTensors::deserialize(&expected).unwrap();
        assert_eq!(cases.len(), expected.len());
        for (number, case) in cases.iter().enumerate() {
            let file = case["file"].as_str().unwrap();
            let spec: ImageInput = serde_json::from_value(case["image"].clone()).unwrap();
            let found = pixel_values(&spec, &picture(file)).unwrap();
            let wanted = expected.tensor(&number.to_string()).unwrap();
            let wanted = wanted.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
            let wanted: Vec<f32> = wanted.collect();
            assert_eq!(found.len(), wanted.len(), "case {number}, {file}");
            // One step of a pixel is 0.017; JPEG and lossy WebP leave the last step of decoding to the decoder.
            let limit = if file.ends_with("jpg") || file == "lossy.webp" { 0.04 } else { 2e-6 };
            let apart = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{number} {file} {apart}");
            assert!(apart <= limit, "case {number}, {file}: {apart} apart");
        }
    }

    #[test]
    fn a_long_thin_picture_costs_what_is_cut_out_of_it() {
        // 3 x 400 pixels, whose shorter side becomes 4,096: 4,096 x 546,133 if all of them were made.
        let wide = Image::decode(&picture("thin.png")).unwrap();
        assert_eq!((wide.width(), wide.height()), (400, 3));
        let spec: ImageInput = serde_json::from_value(serde_json::json!({
            "height": 16, "width": 12, "resize": {"shortest_edge": 4096}, "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        }))
        .unwrap();
        assert_eq!(pixel_values(&spec, &picture("thin.png")).unwrap().len(), 3 * 16 * 12);
    }
}

mod hostile {
    use super::*;

    fn refused(bytes: &[u8]) -> ImageError {
        Image::decode(bytes).unwrap_err()
    }

    #[test]
    fn what_is_no_still_picture_in_rgb_is_told() {
        assert_eq!(refused(b""), ImageError::UnknownFormat);
        assert_eq!(refused(b"GIF89a"), ImageError::UnknownFormat);
        assert_eq!(refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ImageError::UnknownFormat);
        assert_eq!(refused(&picture("animated.png")), ImageError::Animated("PNG"));
        assert_eq!(refused(&picture("animated.webp")), ImageError::Animated("WebP"));
        assert!(matches!(refused(&picture("cmyk.jpg")), ImageError::Print(_)));
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        assert_eq!(refused(&picture("bomb.png")), ImageError::TooManyPixels { width: 60_000, height: 60_000 });
        // A JPEG of the largest size that its header can say.
        let mut jpeg = picture("full.jpg");
        let frame = jpeg.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
        assert_eq!(refused(&jpeg), ImageError::TooManyPixels { width: 65_535, height: 65_535 });
        assert!(matches!(refused(&vec![0x89; (32 << 20) + 1]), ImageError::TooManyBytes(_)));
    }

    #[test]
    fn a_cut_off_file_is_refused() {
        for name in ["photo.png", "photo.jpg", "progressive.jpg", "lossless.webp", "lossy.webp"] {
            let whole = picture(name);
            for part in [4, 2, 1] {
                let cut = &whole[..whole.len() * (4 - part) / 4 + 12];
                assert!(matches!(refused(cut), ImageError::Damaged { .. }), "{name} {part}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn damage_gives_a_picture_or_an_error_but_no_panic(
            file in 0..6usize, at in any::<prop::sample::Index>(), byte in any::<u8>(), more in any::<prop::sample::Index>(),
        ) {
            let names = ["palette.png", "photo.jpg", "progressive.jpg", "lossy.webp", "alpha.webp", "turned-5.png"];
            let mut bytes = picture(names[file]);
            let (at, more) = (at.index(bytes.len()), more.index(bytes.len()));
            bytes[at] = byte;
            bytes[more] ^= byte;
            if let Ok(image) = Image::decode(&bytes) {
                prop_assert_eq!(image.pixels().len(), image.width() * image.height() * image.n_channels());
            }
        }
    }
}

mod predictor {
    use super::*;

    fn class(answers: &[Answer]) -> Vec<&str> {
        fn label(answer: &Answer) -> &str {
            match answer {
                Answer::Class { label, .. } => label,
                other => panic!("{other:?}"),
            }
        }
        answers.iter().map(label).collect()
    }

    fn plain(colour: [u8; 3]) -> Input {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 40, 30);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&colour.repeat(40 * 30)).unwrap();
        Input::Image(Arc::from(bytes))
    }

    #[test]
    fn a_picture_is_classified() {
        let colours = [[0, 0, 0], [250, 30, 20], [10, 240, 40], [20, 10, 255]].map(plain);
        assert_eq!(class(&open(1).predict(&colours).unwrap()), ["dark", "red", "green", "blue"]);
    }

    #[test]
    fn it_agrees_with_pytorch() {
        assert!(open(1).parity().unwrap().passed());
    }

    #[test]
    fn a_picture_gives_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() {
        let predictor = open(1);
        assert_eq!(predictor.sharing(), Sharing::Padded);
        let names = ["photo.png", "photo.jpg", "lossy.webp", "grey.png", "alpha.png", "small.png", "thin.png"];
        let inputs: Vec<Input> = names.iter().cycle().take(40).map(|name| input(name)).collect();
        let together = predictor.predict(&inputs).unwrap();
        let threads = open(3).predict(&inputs).unwrap();
        for ((input, answer), threaded) in inputs.iter().zip(&together).zip(&threads) {
            let alone = predictor.predict(std::slice::from_ref(input)).unwrap();
            assert_eq!(alone[0].digest(), answer.digest());
            assert_eq!(threaded.digest(), answer.digest());
        }
    }

    #[test]
    fn a_text_is_refused_by_a_model_that_sees() {
        for input in [Input::Text("a".to_owned()), Input::Tokens(vec![1])] {
            let error = open(1).prepare(&input).unwrap_err();
            assert_eq!(error.to_string(), "the package is made to see images: it takes a PNG, JPEG or WebP");
        }
    }

    #[test]
    fn an_image_counts_as_its_patches() {
        // 16 x 12 pixels are less than one patch of 16 x 16.
        let predictor = open(1);
        assert_eq!((predictor.max_tokens(), predictor.prepare(&input("photo.png")).unwrap().n_tokens()), (1, 1));
    }

    #[test]
    fn a_size_that_is_not_resized_must_fit() {
        let package = package(|toml| toml.replace("resize = { shortest_edge = 18 }", "resize = \"none\"")).unwrap();
        let predictor = Predictor::open(&package, &PredictorOptions::default()).unwrap();
        let error = predictor.prepare(&input("photo.png")).unwrap_err();
        assert!(matches!(error, TaskError::ImageSize { found: (47, 61), needed: (16, 12) }), "{error}");
    }

    #[test]
    fn an_input_survives_json() {
        let input = input("small.png");
        let json = serde_json::to_string(&input).unwrap();
        assert!(json.starts_with(r#"{"image_base64":"iVBORw0KGgo"#), "{json}");
        assert_eq!(serde_json::from_str::<Input>(&json).unwrap(), input);
    }
}

mod manifest {
    use super::*;

    fn refused(from: &str, to: &str) -> String {
        package(|toml| {
            assert!(toml.contains(from), "{from}");
            toml.replace(from, to)
        })
        .unwrap_err()
    }

    #[test]
    fn parameters_without_sense_are_refused() {
        for (from, to, reason) in [
            ("height = 16", "height = 0", "`image.height` is 0, not in 1..=4096"),
            ("width = 12", "width = 5000", "`image.width` is 5000"),
            ("shortest_edge = 18", "shortest_edge = 15", "`image.resize.shortest_edge` is 15, not in 16..=4096"),
            ("std = [0.229, 0.224, 0.225]", "std = [0.229, 0, 0.225]", "`image.std` must be positive"),
            ("std = [0.229, 0.224, 0.225]", "std = [0.2]", "`image.std` has 1 values for 3 channel(s)"),
            ("height = 16", "height = 16\nrescale = 0", "`image.rescale` is 0"),
            ("height = 16", "height = 16\nchannels = \"grey\"", "`image.mean` has 3 values for 1 channel(s)"),
            ("height = 16", "heigth = 16", "unknown key `task.image.heigth`; did you mean `height`?"),
            ("task = \"classify\"", "task = \"classify\"\nmax_tokens = 9", "either `max_tokens` or `image`"),
            ("\"bilinear\"", "\"nearest\"", "unknown variant `nearest`"),
        ] {
            let message = refused(from, to);
            assert!(message.contains(reason), "{message} is not about {reason}");
        }
    }

    #[test]
    fn a_program_of_another_size_does_not_fit() {
        let package = package(|toml| toml.replace("height = 16", "height = 17")).unwrap();
        let error = Predictor::open(&package, &PredictorOptions::default()).err().unwrap().to_string();
        assert!(error.contains("where one input f32[batch, 3, 17, 12] is needed, the pixels of an image"), "{error}");
    }
}
