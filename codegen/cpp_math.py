"""Functions of C++ that loops over them are vectorised with: exp, tanh and erf, and the sums of exponentials."""
from __future__ import annotations

MATH = r"""
// exp by Cody and Waite's reduction to [-ln2/2, ln2/2] and a polynomial of degree 6 (largest relative error 3e-9, by
// Lawson's iteration); inline, so that a loop over it keeps its vectors in registers. Adding 1.5 * 2^23 rounds to an
// integer and leaves it in the low bits. The scale 2^n is two factors: subnormals and infinity are reached, NaN stays.
// At the lower end one is zero: a product that underflows costs a hundred steps, and what is masked lies there. Of what
// is never above zero the second factor is a constant: the same bits in two thirds of the steps.
template <bool BELOW> static inline float rf_exponential(float x) {
  const float lower = BELOW ? (-105.0f > x ? -105.0f : x) : (-176.0f > x ? -176.0f : x);
  const float v = BELOW ? lower : (89.0f < lower ? 89.0f : lower);
  const float t = __builtin_fmaf(v, 1.44269504088896341f, 12582912.0f);
  const float n = t - 12582912.0f;
  float r = __builtin_fmaf(n, -0.693359375f, v);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.381459879e-3f;
  p = __builtin_fmaf(p, r, 8.368716575e-3f);
  p = __builtin_fmaf(p, r, 4.166838899e-2f);
  p = __builtin_fmaf(p, r, 1.666652113e-1f);
  p = __builtin_fmaf(p, r, 4.999999404e-1f);
  const float y = __builtin_fmaf(p, r * r, r) + 1.0f;
  uint32_t u; __builtin_memcpy(&u, &t, 4);
  if constexpr (BELOW) return y * rf_bits((u + 151u) << 23) * 0x1p-24f;  // n + 127 + 24, which is 0 for -105
  const int32_t whole = (int32_t)(u - (0x4B400000u - 254u)), half = whole >> 1;  // each half biased by 127
  return y * rf_bits((uint32_t)half << 23) * rf_bits((uint32_t)(whole - half) << 23);
}
static inline float rf_exp(float x) { return rf_exponential<false>(x); }
static inline float rf_exp_below(float x) { return rf_exponential<true>(x); }
static inline double rf_exp_below(double x) { return RF_LANE(exp)(x); }
// 1 / (1 + exp(-x)) from exp(-|x|).
static inline float rf_sigmoid(float x) {
  const float e = rf_exp_below(-__builtin_fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}
// tanh from exp(-2|x|), and by Cephes' odd polynomial near zero, where the quotient would cancel.
static inline float rf_tanh(float x) {
  const float a = __builtin_fabsf(x), e = rf_exp_below(-2.0f * a);
  const float far = __builtin_copysignf((1.0f - e) / (1.0f + e), x);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = __builtin_fmaf(p, z, 2.06390887954e-2f);
  p = __builtin_fmaf(p, z, -5.37397155531e-2f);
  p = __builtin_fmaf(p, z, 1.33314422036e-1f);
  p = __builtin_fmaf(p, z, -3.33332819422e-1f);
  const float near = __builtin_fmaf(p * z, x, x);
  return __builtin_copysignf(a < 0.625f ? near : far, x);
}
// erf as x P(x^2) / Q(x^2), both of degree 5 (largest relative error 2e-8 on [0, 3.93], by Lawson's iteration; 6 units
// in the last place when evaluated). It takes half the time of libmvec's. From 3.92 on floats round erf to 1.
static inline float rf_erf(float x) {
  const float a = __builtin_fabsf(x), t = a * a;
  float p = 2.04199637e-6f;
  p = __builtin_fmaf(p, t, 2.84807640e-4f);
  p = __builtin_fmaf(p, t, 3.77952773e-3f);
  p = __builtin_fmaf(p, t, 5.27900308e-2f);
  p = __builtin_fmaf(p, t, 1.90781802e-1f);
  p = __builtin_fmaf(p, t, 1.12837911f);
  float q = 3.80042911e-5f;
  q = __builtin_fmaf(q, t, 1.16519467e-3f);
  q = __builtin_fmaf(q, t, 1.49972718e-2f);
  q = __builtin_fmaf(q, t, 1.14256695e-1f);
  q = __builtin_fmaf(q, t, 5.02408683e-1f);
  q = __builtin_fmaf(q, t, 1.0f);
  const float y = a * p / q;
  return __builtin_copysignf(a > 3.92f || y > 1.0f ? 1.0f : y, x);
}
"""
