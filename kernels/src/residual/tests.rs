use candle_core::{DType, Tensor};

use super::*;
use crate::add::add;
use crate::layer_norm::layer_norm;
use crate::norm::NormKind;
use crate::rms_norm::rms_norm;
use crate::simd::at_every_level;
use crate::testing::{assert_error, bits, random_tensor, values};

fn norm_of(norm: &Norm<'_>, x: &Tensor) -> Tensor {
    match norm.kind {
        NormKind::Rms => rms_norm(x, norm.weight, norm.eps).unwrap(),
        NormKind::Layer => layer_norm(x, norm.weight, None, norm.eps).unwrap(),
    }
}

#[test]
fn one_pass_gives_the_bits_of_norm_scale_add_and_norm() {
    at_every_level(|| {
        for (tokens, hidden) in [(1, 1), (7, 33), (2, 1024), (33, 257), (700, 64)] {
            let [x, y] = [1, 2].map(|seed| random_tensor(seed, &[tokens, hidden], DType::F32));
            let weights = [3, 4].map(|seed| random_tensor(seed, &[hidden], DType::F32));
            for kind in [NormKind::Rms, NormKind::Layer] {
                let [post, pre] = weights.each_ref().map(|weight| Norm { kind, eps: 1e-5, weight });
                for (post, scale) in [(None, None), (Some(post), None), (Some(post), Some(0.3))] {
                    let normed = post.map_or(y.clone(), |post| norm_of(&post, &y));
                    let scaled = scale.map_or(normed.clone(), |scale: f32| {
                        normed.affine(f64::from(scale), 0.0).unwrap()
                    });
                    let expected = add(&x, &scaled).unwrap();
                    let stream = x.copy().unwrap();
                    let out = x.zeros_like().unwrap();
                    let given = Given { y: &y, post, scale };
                    residual(&stream, Some(&given), Some((pre, &out))).unwrap();
                    assert_eq!(values(&stream), values(&expected));
                    assert_eq!(bits(&out), bits(&norm_of(&pre, &expected)));
                    let stream = x.copy().unwrap();
                    residual(&stream, Some(&given), None).unwrap();
                    assert_eq!(values(&stream), values(&expected));
                }
                let (stream, out) = (x.copy().unwrap(), x.zeros_like().unwrap());
                residual(&stream, None, Some((pre, &out))).unwrap();
                assert_eq!((bits(&stream), bits(&out)), (bits(&x), bits(&norm_of(&pre, &x))));
            }
        }
    });
}

#[test]
fn wrong_arguments_are_named_and_nothing_is_written() {
    let x = random_tensor(1, &[3, 5], DType::F32);
    let before = bits(&x);
    let weight = random_tensor(2, &[5], DType::F32);
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight: &weight };
    let short = Norm { weight: &weight.narrow(0, 0, 4).unwrap(), ..norm };
    let y = random_tensor(3, &[3, 5], DType::F32);
    fn given(y: &Tensor) -> Given<'_> {
        Given { y, post: None, scale: None }
    }
    let join = |y: &Tensor| residual(&x, Some(&given(y)), None);
    assert_error(join(&y.narrow(0, 0, 2).unwrap()), "y: expected shape [3, 5], found [2, 5]");
    assert_error(join(&x), "x: expected memory that no other argument shares, found that of y");
    assert_error(residual(&x, None, Some((short, &y))), "weight: expected shape [5], found [4]");
    let narrow = y.narrow(0, 0, 2).unwrap();
    assert_error(
        residual(&x, None, Some((norm, &narrow))),
        "out: expected shape [3, 5], found [2, 5]",
    );
    assert_error(
        residual(&x, Some(&given(&y)), Some((norm, &y))),
        "out: expected memory that no other argument shares, found that of y",
    );
    assert_eq!(bits(&x), before);
}
