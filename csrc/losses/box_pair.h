// SPDX-License-Identifier: MIT
// The box-regression losses: pure formulas over two boxes, written once for every number type.
//
// b1 is the prediction, b2 the target, both xyxy; `parameter` holds the float arguments of the
// Python function in the order of its signature. Boxes may be degenerate (zero area, inverted,
// identical, disjoint): wherever a quotient could be 0/0 the guard stands beside it, so that finite
// boxes give a finite loss and a finite gradient.
#pragma once
#include "core/special.h"
#include "losses/list.h"
#include "losses/rotated_box.h"

namespace fastloss::FASTLOSS_TARGET {

template <class X1, class Y1, class X2, class Y2>
struct Box {
  X1 x1;
  Y1 y1;
  X2 x2;
  Y2 y2;
  FASTLOSS_INLINE auto width() const { return x2 - x1; }
  FASTLOSS_INLINE auto height() const { return y2 - y1; }
  FASTLOSS_INLINE auto area() const { return width() * height(); }
  FASTLOSS_INLINE auto center_x() const { return value_type<X1>(0.5) * (x1 + x2); }
  FASTLOSS_INLINE auto center_y() const { return value_type<X1>(0.5) * (y1 + y2); }
};

template <class Intersection, class Union>
struct Overlap {
  Intersection intersection;
  Union union_area;

  // Where the boxes do not overlap the IoU is 0 with gradient 0, whatever the areas are: inverted
  // boxes have areas of any sign, and only boxes that overlap are known to have a positive union. A
  // NaN coordinate shows in the union.
  template <class T>
  FASTLOSS_INLINE auto iou(T eps) const {
    using V = value_type<Intersection>;
    const auto divides = (detach(intersection) > V(0)) | is_nan(detach(union_area));
    return intersection / select(divides, union_area + eps, V(1));
  }
};

// Boxes that only touch do not overlap (torchvision's strict comparison): their IoU has no
// gradient.
template <class B1, class B2>
FASTLOSS_INLINE auto overlap(const B1& b1, const B2& b2) {
  const auto width = min(b1.x2, b2.x2) - max(b1.x1, b2.x1);
  const auto height = min(b1.y2, b2.y2) - max(b1.y1, b2.y1);
  using V = value_type<decltype(width)>;
  const auto intersection =
      select((detach(width) > V(0)) & (detach(height) > V(0)), width * height, V(0));
  const auto union_area = b1.area() + b2.area() - intersection;
  return Overlap<decltype(intersection), decltype(union_area)>{intersection, union_area};
}

template <class Width, class Height>
struct Extent {
  Width width;
  Height height;
  FASTLOSS_INLINE auto area() const { return width * height; }
  FASTLOSS_INLINE auto diagonal2() const { return square(width) + square(height); }
};

// The smallest box around both.
template <class B1, class B2>
FASTLOSS_INLINE auto enclosing(const B1& b1, const B2& b2) {
  const auto width = max(b1.x2, b2.x2) - min(b1.x1, b2.x1);
  const auto height = max(b1.y2, b2.y2) - min(b1.y1, b2.y1);
  return Extent<decltype(width), decltype(height)>{width, height};
}

template <class B1, class B2>
FASTLOSS_INLINE auto center_distance2(const B1& b1, const B2& b2) {
  return square(b1.center_x() - b2.center_x()) + square(b1.center_y() - b2.center_y());
}

// IoU − ρ²/c², the part that DIoU, CIoU, EIoU and XIoU share.
template <class IoU, class B1, class B2, class T>
FASTLOSS_INLINE auto distance_iou(const IoU& iou, const B1& b1, const B2& b2, T eps) {
  return iou - center_distance2(b1, b2) / (enclosing(b1, b2).diagonal2() + eps);
}

// The weight of an aspect term: α = v / (1 − IoU + v + eps), a constant for the gradient.
template <class IoU, class Aspect, class T>
FASTLOSS_INLINE auto aspect_weight(const IoU& iou, const Aspect& v, T eps) {
  using V = value_type<IoU>;
  return detach(v) / (max(V(1) - detach(iou), V(0)) + detach(v) + eps);
}

// atan(w / h) with its exact gradient (h·dw − w·dh) / (w² + h²): finite for a flat box, and 0 for a
// point.
template <class Width, class Height>
FASTLOSS_INLINE auto aspect_angle(const Width& width, const Height& height) {
  using V = value_type<Width>;
  const V w = detach(width), h = detach(height), zero(0), half_pi(1.5707963267948966);
  const V flat = select(w > zero, half_pi, select(w < zero, -half_pi, zero));
  const V angle = select(h == zero, flat, atan(w / select(h == zero, V(1), h)));
  if constexpr (IsDual<Width>) {
    // Boxes so small that w² + h² leaves the normal numbers have no angle to speak of.
    const V norm = w * w + h * h;
    const auto known = norm >= V(smallest_normal<scalar_of<V>>);
    const V inverse = V(1) / select(known, norm, V(1));
    return chain(width, height, angle, select(known, h * inverse, zero),
                 select(known, -w * inverse, zero));
  } else {
    return angle;
  }
}

// IoU. Yu et al. 2016, UnitBox, arXiv 1608.01471.
struct BoxIoU {
  static constexpr const char* kName = "iou";
  static constexpr int kParameters = 1;  // eps
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    return overlap(b1, b2).iou(parameter[0]);
  }
};

// IoU − (C − U) / C. Rezatofighi et al. 2019, arXiv 1902.09630.
struct GeneralizedBoxIoU {
  static constexpr const char* kName = "giou";
  static constexpr int kParameters = 1;  // eps
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0];
    const auto both = overlap(b1, b2);
    const auto enclosing_area = enclosing(b1, b2).area();
    // The enclosing "area" of inverted boxes may be −eps exactly.
    return both.iou(eps) - (enclosing_area - both.union_area) / nonzero(enclosing_area + eps, eps);
  }
};

// IoU − ρ²/c². Zheng et al. 2020, arXiv 1911.08287.
struct DistanceBoxIoU {
  static constexpr const char* kName = "diou";
  static constexpr int kParameters = 1;  // eps
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    return distance_iou(overlap(b1, b2).iou(parameter[0]), b1, b2, parameter[0]);
  }
};

// IoU − ρ²/c² − αv, v = 4/π² (angle₂ − angle₁)². Zheng et al. 2020, arXiv 2005.03572.
struct CompleteBoxIoU {
  static constexpr const char* kName = "ciou";
  static constexpr int kParameters = 2;  // eps, aspect_threshold
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0], aspect_threshold = parameter[1];
    constexpr T kFourOverPi2 = T(0.405284734569351085775517852838911);
    const auto iou = overlap(b1, b2).iou(eps);
    const auto v = kFourOverPi2 * square(aspect_angle(b2.width(), b2.height()) -
                                         aspect_angle(b1.width(), b1.height()));
    using V = value_type<decltype(iou)>;
    V alpha = aspect_weight(iou, v, eps);
    if (aspect_threshold > T(0)) alpha = select(detach(iou) > V(aspect_threshold), alpha, V(0));
    return distance_iou(iou, b1, b2, eps) - alpha * v;
  }
};

// IoU − ρ²/c² − Δw²/cw² − Δh²/ch². Zhang et al. 2021, arXiv 2101.08158.
struct EfficientBoxIoU {
  static constexpr const char* kName = "eiou";
  static constexpr int kParameters = 1;  // eps
  template <class IoU, class B1, class B2, class T>
  static FASTLOSS_INLINE auto from_iou(const IoU& iou, const B1& b1, const B2& b2, T eps) {
    const auto around = enclosing(b1, b2);
    return distance_iou(iou, b1, b2, eps) -
           square(b1.width() - b2.width()) / (square(around.width) + eps) -
           square(b1.height() - b2.height()) / (square(around.height) + eps);
  }
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    return from_iou(overlap(b1, b2).iou(parameter[0]), b1, b2, parameter[0]);
  }
};

// IoU − (Δ + Ω)/2: angle, distance and shape cost. Gevorgyan 2022, arXiv 2205.12740, in the paper's
// sign.
struct ScyllaBoxIoU {
  static constexpr const char* kName = "siou";
  static constexpr int kParameters = 2;  // eps, theta
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0], theta = parameter[1];
    const auto dx = b1.center_x() - b2.center_x();
    const auto dy = b1.center_y() - b2.center_y();
    const auto dx2 = square(dx);
    const auto dy2 = square(dy);
    // sin(2α) = 2·sin α·cos α of the angle between the centres: no arcsine, and smooth where the
    // centres meet.
    const auto angle_cost = T(2) * abs(dx) * abs(dy) / (dx2 + dy2 + eps);
    const auto decay = T(2) - angle_cost;
    const auto around = enclosing(b1, b2);
    const auto distance_cost = T(2) - exp(-(decay * dx2 / (square(around.width) + eps))) -
                               exp(-(decay * dy2 / (square(around.height) + eps)));
    const auto shape_cost =
        power(T(1) - exp(-relative_difference(b1.width(), b2.width(), eps)), theta) +
        power(T(1) - exp(-relative_difference(b1.height(), b2.height(), eps)), theta);
    return overlap(b1, b2).iou(eps) - T(0.5) * (distance_cost + shape_cost);
  }

 private:
  // |a − b| / max(a, b). Inverted boxes have negative sides: the clamp keeps the quotient positive.
  template <class A, class B, class T>
  static FASTLOSS_INLINE auto relative_difference(const A& a, const B& b, T eps) {
    using V = common_value<A, B>;
    return abs(a - b) / (max(max(a, b), V(0)) + eps);
  }
};

// exp(−√W₂² / constant) of the boxes as Gaussians. Wang et al. 2021, arXiv 2110.13389.
struct NormalizedWasserstein {
  static constexpr const char* kName = "nwd";
  static constexpr int kParameters = 2;  // eps, constant
  // eps stands inside the root, so that identical boxes have a finite gradient.
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto distance2(const B1& b1, const B2& b2, T eps) {
    return center_distance2(b1, b2) +
           T(0.25) * (square(b1.width() - b2.width()) + square(b1.height() - b2.height())) + eps;
  }
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto similarity(const B1& b1, const B2& b2, const T* parameter) {
    return exp(-(sqrt(distance2(b1, b2, parameter[0])) / parameter[1]));
  }
};

using BoxSimilarities = List<BoxIoU, GeneralizedBoxIoU, DistanceBoxIoU, CompleteBoxIoU,
                             EfficientBoxIoU, ScyllaBoxIoU, NormalizedWasserstein>;

// The loss of a similarity is 1 − similarity.
template <class Similarity>
struct OneMinus : OfBoxes {
  static constexpr int kParameters = Similarity::kParameters;
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    return T(1) - Similarity::similarity(b1, b2, parameter);
  }
};

struct BoxIoULossLinear : OneMinus<BoxIoU> {
  static constexpr const char* kName = "box_iou_loss/linear";
};
struct GeneralizedBoxIoULoss : OneMinus<GeneralizedBoxIoU> {
  static constexpr const char* kName = "generalized_box_iou_loss";
};
struct DistanceBoxIoULoss : OneMinus<DistanceBoxIoU> {
  static constexpr const char* kName = "distance_box_iou_loss";
};
struct CompleteBoxIoULoss : OneMinus<CompleteBoxIoU> {
  static constexpr const char* kName = "complete_box_iou_loss";
};
struct ScyllaBoxIoULoss : OneMinus<ScyllaBoxIoU> {
  static constexpr const char* kName = "scylla_box_iou_loss";
};
struct NormalizedWassersteinLossExp : OneMinus<NormalizedWasserstein> {
  static constexpr const char* kName = "normalized_wasserstein_loss/exp";
};

struct BoxIoULossSquare : OfBoxes {
  static constexpr const char* kName = "box_iou_loss/square";
  static constexpr int kParameters = 1;  // eps
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    return T(1) - square(overlap(b1, b2).iou(parameter[0]));
  }
};

struct BoxIoULossLog : OfBoxes {
  static constexpr const char* kName = "box_iou_loss/log";
  static constexpr int kParameters = 1;  // eps
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    return -log(clamp_min(overlap(b1, b2).iou(parameter[0]), parameter[0]));
  }
};

// (1 − EIoU)·IoU^gamma.
struct EfficientBoxIoULoss : OfBoxes {
  static constexpr const char* kName = "efficient_box_iou_loss";
  static constexpr int kParameters = 3;  // eps, gamma, detach_focal
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0], gamma = parameter[1];
    const bool detach_focal = parameter[2] != T(0);
    const auto iou = overlap(b1, b2).iou(eps);
    auto result = T(1) - EfficientBoxIoU::from_iou(iou, b1, b2, eps);
    if (gamma != T(0)) {
      if (detach_focal) {
        result = result * power(detach(iou), gamma);
      } else {
        result = result * power(iou, gamma);
      }
    }
    return result;
  }
};

// r·exp(ρ²/c²)·(1 − IoU), c² constant for the gradient. Tong et al. 2023, arXiv 2301.10051.
struct WiseBoxIoULoss : OfBoxes {
  static constexpr const char* kName = "wise_box_iou_loss";
  static constexpr int kParameters = 6;  // eps, version, iou_mean, alpha, delta, gamma
  static constexpr int kDeviceParameter = 2;
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0], version = parameter[1], iou_mean = parameter[2];
    const auto iou_loss = T(1) - overlap(b1, b2).iou(eps);
    using V = value_type<decltype(iou_loss)>;
    // ρ ≤ c for proper boxes; an inverted one can be anywhere, and its exponent must not overflow.
    const V diagonal2 = detach(enclosing(b1, b2).diagonal2()) + eps;
    const auto attention = exp(min(center_distance2(b1, b2) / diagonal2, V(2)));
    V focus(1);
    if (version != T(1)) {
      const V outlierness = detach(iou_loss) / max(V(iou_mean), V(eps));
      focus = version == T(2) ? power(outlierness, parameter[5])
                              : non_monotonic_focus(outlierness, parameter[3], parameter[4]);
    }
    return focus * (attention * iou_loss);
  }

 private:
  // β / (δ·α^(β − δ))
  template <class V, class T>
  static FASTLOSS_INLINE V non_monotonic_focus(const V& beta, T alpha, T delta) {
    const V log_alpha = log(V(alpha));
    return beta / delta * exp(-((beta - delta) * log_alpha));
  }
};

// CIoU with v = (σ(w₂/h₂) − σ(w₁/h₁))²: no paper, the community's XIoU.
struct SigmoidAspectBoxIoULoss : OfBoxes {
  static constexpr const char* kName = "sigmoid_aspect_box_iou_loss";
  static constexpr int kParameters = 1;  // eps
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    const T eps = parameter[0];
    const auto iou = overlap(b1, b2).iou(eps);
    const auto v = square(aspect(b2, eps) - aspect(b1, eps));
    return T(1) - (distance_iou(iou, b1, b2, eps) - aspect_weight(iou, v, eps) * v);
  }

 private:
  template <class B, class T>
  static FASTLOSS_INLINE auto aspect(const B& box, T eps) {
    return sigmoid(box.width() / nonzero(box.height() + eps, eps));
  }
};

// The other three readings of the Wasserstein distance.
template <class Derived>
struct WassersteinDistanceLoss : OfBoxes {
  static constexpr int kParameters = 2;  // eps, constant (which only the normalised form uses)
  template <class B1, class B2, class T>
  static FASTLOSS_INLINE auto loss(const B1& b1, const B2& b2, const T* parameter) {
    return Derived::of(NormalizedWasserstein::distance2(b1, b2, parameter[0]));
  }
};
struct NormalizedWassersteinLossSqrt : WassersteinDistanceLoss<NormalizedWassersteinLossSqrt> {
  static constexpr const char* kName = "normalized_wasserstein_loss/sqrt";
  template <class X>
  static FASTLOSS_INLINE auto of(const X& distance2) {
    return sqrt(distance2);
  }
};
struct NormalizedWassersteinLossLog : WassersteinDistanceLoss<NormalizedWassersteinLossLog> {
  static constexpr const char* kName = "normalized_wasserstein_loss/log";
  template <class X>
  static FASTLOSS_INLINE auto of(const X& distance2) {
    return log1p(distance2);
  }
};
struct NormalizedWassersteinLossSquared
    : WassersteinDistanceLoss<NormalizedWassersteinLossSquared> {
  static constexpr const char* kName = "normalized_wasserstein_loss/w2";
  template <class X>
  static FASTLOSS_INLINE auto of(const X& distance2) {
    return distance2;
  }
};

template <class X, class Y>
struct Point {
  X x;
  Y y;
};

// How unlike two keypoints are: 1 − exp(−d² / spread), a term of the object keypoint similarity.
// Maji et al. 2022, YOLO-Pose, arXiv 2204.06806.
struct ObjectKeypointSimilarityLoss {
  static constexpr const char* kName = "object_keypoint_similarity_loss";
  static constexpr const char *kInputName = "keypoints", *kTargetName = "targets",
                              *kExtraName = "spread";
  static constexpr int kParameters = 0;
  static constexpr int kCoordinates = 2;
  static constexpr bool kPairExtra = true;
  static constexpr bool kWeightedMean = false;  // it divides by the number of keypoints
  template <class P1, class P2, class V, class T>
  static FASTLOSS_INLINE auto loss(const P1& p1, const P2& p2, const V& spread,
                                   const T* /*parameter*/) {
    return saturation((square(p1.x - p2.x) + square(p1.y - p2.y)) / spread);
  }
};

using BoxPairLosses =
    List<BoxIoULossLinear, BoxIoULossSquare, BoxIoULossLog, GeneralizedBoxIoULoss,
         DistanceBoxIoULoss, CompleteBoxIoULoss, EfficientBoxIoULoss, ScyllaBoxIoULoss,
         WiseBoxIoULoss, SigmoidAspectBoxIoULoss, NormalizedWassersteinLossExp,
         NormalizedWassersteinLossSqrt, NormalizedWassersteinLossLog,
         NormalizedWassersteinLossSquared, ProbabilisticIoULoss, ObjectKeypointSimilarityLoss>;

// ---- what the engine hands to a formula ----

template <class Formula>
constexpr int coordinates_of = List<Formula>::kInfo[0].coordinates;

// A box or point of so many coordinates, each a variable where a gradient is wanted: the first one
// is the seed kFirst, the next one the next bit.
template <unsigned kFirst, bool kWanted, class V>
FASTLOSS_INLINE auto operand(const V (&c)[4]) {
  return Box{variable<kFirst, kWanted>(c[0]), variable<2 * kFirst, kWanted>(c[1]),
             variable<4 * kFirst, kWanted>(c[2]), variable<8 * kFirst, kWanted>(c[3])};
}
template <unsigned kFirst, bool kWanted, class V>
FASTLOSS_INLINE auto operand(const V (&c)[5]) {
  return RotatedBox{variable<kFirst, kWanted>(c[0]), variable<2 * kFirst, kWanted>(c[1]),
                    variable<4 * kFirst, kWanted>(c[2]), variable<8 * kFirst, kWanted>(c[3]),
                    variable<16 * kFirst, kWanted>(c[4])};
}
template <unsigned kFirst, bool kWanted, class V>
FASTLOSS_INLINE auto operand(const V (&c)[2]) {
  return Point{variable<kFirst, kWanted>(c[0]), variable<2 * kFirst, kWanted>(c[1])};
}

// The derivatives with respect to the coordinates of such an operand, times a factor.
template <unsigned kFirst, class X, class V, int kCoordinates>
FASTLOSS_INLINE void gradient_of(const X& loss, const V& factor, V (&out)[kCoordinates]) {
  out[0] = derivative<kFirst>(loss) * factor;
  out[1] = derivative<2 * kFirst>(loss) * factor;
  if constexpr (kCoordinates > 2) {
    out[2] = derivative<4 * kFirst>(loss) * factor;
    out[3] = derivative<8 * kFirst>(loss) * factor;
  }
  if constexpr (kCoordinates > 4) out[4] = derivative<16 * kFirst>(loss) * factor;
}

// The loss of a pair, whose formula may have one more number of it.
template <class Formula, class B1, class B2, class V, class T>
FASTLOSS_INLINE auto loss_of_pair(const B1& b1, const B2& b2, const V& extra, const T* parameter) {
  if constexpr (requires { Formula::kPairExtra; }) {
    return Formula::loss(b1, b2, extra, parameter);
  } else {
    return Formula::loss(b1, b2, parameter);
  }
}

}  // namespace fastloss::FASTLOSS_TARGET
