// A whole decode step on a CPU in one call: from tokens to logits, and from logits to tokens.
//
// Compiled at run time for one machine and one set of sizes (build.py): HEAD_DIM P, PAGE W, GROUP G; for mixers
// MIXER_GROUP M, STATE N, TAPS. Activations, KV and states are fp32; matrices are packed in panels, in bf16 where that
// loses nothing, and widened in registers. The reference is models/decoder.py's `step` and engine/sampler.py.
//
// Legend: B rows, D model width, H heads, K key-value heads. Threads split columns of products (each then reads its
// part of the weights once), and rows times heads of everything else; five barriers a layer hold them together.
// A NaN goes through to its own row's logits and to no other row.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && HEAD_DIM % 16 == 0
#define BYTES 64
#define ROWS 12
#elif defined(__AVX__) && HEAD_DIM % 8 == 0
#define BYTES 32
#define ROWS 6
#else
#define BYTES 16
#define ROWS 6
#endif
#define VL (BYTES / 4)
#define COLUMNS (2 * VL)
#define P HEAD_DIM
#define W PAGE
#define G GROUP
#define M MIXER_GROUP
#define N STATE
#define PV (P / VL)
#define WV (W / VL)
// Sums in flight: enough to hide the latency of a fused multiply-add, few enough to stay in registers.
#define UNROLL (PV >= 8 ? 1 : PV >= 4 ? 2 : 4)
#define NU (N % UNROLL ? 1 : UNROLL)

typedef float vf __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

static inline vf all(float x) { return x - (vf){}; }
static inline vf load(const float *x) { return *(const vf *)x; }
static inline void store(float *x, vf v) { *(vf *)x = v; }
static inline vf widen(const uint16_t *x) { return (vf)(__builtin_convertvector(*(const vh *)x, vu) << 16); }
static inline vf pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
static inline vf vmax(vf a, vf b) { return pick(a > b, a, b); }
static inline float sum(vf v) {
  const union { vf all; v4 part[VL / 4]; } u = {v};
  v4 t = u.part[0];
  for (int i = 1; i < VL / 4; i++) t += u.part[i];
  return (t[0] + t[1]) + (t[2] + t[3]);
}
static inline float largest(vf v) {
  float m[VL];
  store(m, v);
  for (int n = VL / 2; n; n /= 2)
    for (int i = 0; i < n; i++) m[i] = m[i] > m[i + n] ? m[i] : m[i + n];
  return m[0];
}

// exp to 2 units in the last place for x <= 88; below -87 it is 0. 2^k * e^r with |r| <= ln(2) / 2 by its Taylor series.
static inline vf vexp(vf x) {
  vf t = x * all(1.44269504f);
  vi k = __builtin_convertvector(t + pick(t < all(0.0f), all(-0.5f), all(0.5f)), vi);
  vf fk = __builtin_convertvector(k, vf);
  vf r = (x - fk * all(0.693359375f)) + fk * all(2.12194440e-4f);
  vf y = all(1.9875691e-4f);
  y = y * r + all(1.3981999e-3f);
  y = y * r + all(8.3334519e-3f);
  y = y * r + all(4.1665796e-2f);
  y = y * r + all(1.6666665e-1f);
  y = y * r + all(5.0000001e-1f);
  y = y * r * r + r + all(1.0f);
  vf found = (vf)((vi)y + (k << 23));
  found = pick(x < all(-87.0f), all(0.0f), found);
  return pick(x == x, found, x);
}
static inline vf silu(vf x) { return x / (all(1.0f) + vexp(pick(x < all(-80.0f), all(80.0f), -x))); }
static inline float silu1(float x) { return x / (1 + expf(-x)); }

// ---- Products: [B, in] times a packed matrix ----

typedef struct {
  const void *data;   // [out / COLUMNS, in, COLUMNS], bf16 or fp32, zeros behind the last column
  const float *bias;  // [out up to a whole panel], or null
  int64_t in, out, bf16;
} matrix;

enum { STORE, ADD, GATED };
#define SUMMED 128

// R rows of x times one panel. GATED panels hold VL columns of the gate and VL of what it gates.
static inline __attribute__((always_inline)) void tile(const int R, const int bf16, const float *x, int64_t ldx,
                                                       const matrix *m, int64_t panel, int mode, float *out,
                                                       int64_t ldo) {
  vf acc[ROWS][2], total[ROWS][2];
  for (int r = 0; r < R; r++) total[r][0] = total[r][1] = all(0.0f);
  const int64_t at = panel * m->in * COLUMNS;
  // A running sum rounds at every term, so its error grows with the root of their number: sums of SUMMED are added up.
  for (int64_t k = 0; k < m->in;) {
    const int64_t end = k + SUMMED < m->in ? k + SUMMED : m->in;
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = all(0.0f);
    for (; k < end; k++) {
      vf w0, w1;
      if (bf16) {
        const uint16_t *w = (const uint16_t *)m->data + at + k * COLUMNS;
        w0 = widen(w), w1 = widen(w + VL);
      } else {
        const float *w = (const float *)m->data + at + k * COLUMNS;
        w0 = load(w), w1 = load(w + VL);
      }
      for (int r = 0; r < R; r++) {
        vf by = all(x[r * ldx + k]);
        acc[r][0] += by * w0;
        acc[r][1] += by * w1;
      }
    }
    for (int r = 0; r < R; r++) total[r][0] += acc[r][0], total[r][1] += acc[r][1];
  }
  for (int r = 0; r < R; r++) {
    if (m->bias) {
      total[r][0] += load(m->bias + panel * COLUMNS);
      total[r][1] += load(m->bias + panel * COLUMNS + VL);
    }
    if (mode == GATED) {
      store(out + r * ldo + panel * VL, silu(total[r][0]) * total[r][1]);
      continue;
    }
    float *to = out + r * ldo + panel * COLUMNS;
    if (mode == ADD) total[r][0] += load(to), total[r][1] += load(to + VL);
    store(to, total[r][0]);
    store(to + VL, total[r][1]);
  }
}

#define CASE(R) \
  case R: \
    if (m->bf16) tile(R, 1, x, ldx, m, panel, mode, out, ldo); \
    else tile(R, 0, x, ldx, m, panel, mode, out, ldo); \
    break;

static __attribute__((noinline)) void rows_of_panel(int rows, const float *x, int64_t ldx, const matrix *m,
                                                    int64_t panel, int mode, float *out, int64_t ldo) {
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 12
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
}

// This thread's share of out [B, ldo] (+)= x [B, ldx] times m.
static void product(const float *x, int64_t ldx, const matrix *m, int64_t rows, int mode, float *out, int64_t ldo) {
  const int64_t panels = (m->out + COLUMNS - 1) / COLUMNS, blocks = (rows + ROWS - 1) / ROWS, items = panels * blocks;
  const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
  for (int64_t item = items * me / team; item < items * (me + 1) / team; item++) {
    // Blocks of even size: the last one would else be left with one row, which costs as much as four.
    const int64_t panel = item / blocks, block = item % blocks;
    const int64_t first = rows * block / blocks, last = rows * (block + 1) / blocks;
    rows_of_panel(last - first, x + first * ldx, ldx, m, panel, mode, out + first * ldo, ldo);
  }
}

// ---- The step's memory ----

typedef struct {
  int64_t mamba;
  const float *input_norm, *post_norm;  // [D]
  matrix in, out, up, down;
  const float *q_norm, *k_norm;         // [P], or null
  float *tail_k, *tail_v;               // [rows, K, W, P]
  const float *page_k, *page_v;         // [pages, K, P, W], [pages, K, W, P]
  const float *taps, *conv_bias;        // [TAPS, C], [C]
  const float *dt_bias, *rates, *skip;  // [H] each; rates are negative
  const float *gate_norm;               // [H P]
  float *conv, *state;                  // [rows, TAPS - 1, C], [rows, H, N, P]
} layer;

typedef struct {
  const layer *layers;
  const float *embed, *norm;      // [V, D], [D]
  matrix head;
  const float *cos, *sin;         // [positions, P / 2]
  float *x, *normed, *wide, *mid, *logits;  // [B, .] each; of `normed` every thread has its own
  const int64_t *tokens, *positions;        // [B]
  const int64_t *tail_len;        // [B] tokens in the tail; the new one goes behind them
  const int64_t *pages, *filled;  // [B, S] where the row's pages lie, and the tokens in each
  const int64_t *spans;           // [B] how many pages the row has
  int64_t n_layers, rows, d, heads, kv_heads, mixer_heads, max_spans, ld_x, ld_wide, ld_mid, ld_logits, threads;
  float scale, eps;
} step_args;

// out = x over the root of its mean square, times scale; all rows, by every thread for itself: cheaper than to wait.
static void rms_norm(const step_args *a, const float *scale, float *out) {
  for (int64_t row = 0; row < a->rows; row++) {
    const float *from = a->x + row * a->ld_x;
    float *to = out + row * a->ld_x;
    vf squares = all(0.0f);
    float rest = 0;
    int64_t i = 0;
    for (; i + VL <= a->d; i += VL) squares += load(from + i) * load(from + i);
    for (; i < a->d; i++) rest += from[i] * from[i];
    const float by = 1 / sqrtf((sum(squares) + rest) / a->d + a->eps);
    for (i = 0; i + VL <= a->d; i += VL) store(to + i, load(from + i) * all(by) * load(scale + i));
    for (; i < a->d; i++) to[i] = from[i] * by * scale[i];
  }
}

// ---- Attention of one row and key-value head: its pages, then the tail with the new token ----

typedef struct {
  float peak, total;
  vf out[PV];
} softmax;

// Add n <= W tokens with scores s [W] and values v [W, P] to a running softmax.
static inline void absorb(softmax *a, float *s, const float *v, int64_t n) {
  for (int64_t w = n; w < W; w++) s[w] = -INFINITY;
  vf m = load(s);
  for (int i = 1; i < WV; i++) m = vmax(m, load(s + i * VL));
  // A NaN score need not win here: its own weight below is NaN whatever the peak.
  float peak = largest(m);
  peak = a->peak > peak ? a->peak : peak;
  const float fade = expf(a->peak - peak);
  vf t = all(0.0f), by = all(peak);
  for (int i = 0; i < WV; i++) {
    vf e = vexp(load(s + i * VL) - by);
    store(s + i * VL, e);
    t += e;
  }
  a->total = a->total * fade + sum(t);
  a->peak = peak;
  vf acc[UNROLL][PV];
  for (int i = 0; i < PV; i++) {
    acc[0][i] = a->out[i] * all(fade);
    for (int u = 1; u < UNROLL; u++) acc[u][i] = all(0.0f);
  }
  int64_t w = 0;
  for (; w + UNROLL <= n; w += UNROLL)
    for (int u = 0; u < UNROLL; u++)
      for (int i = 0; i < PV; i++) acc[u][i] += all(s[w + u]) * load(v + (w + u) * P + i * VL);
  for (; w < n; w++)
    for (int i = 0; i < PV; i++) acc[0][i] += all(s[w]) * load(v + w * P + i * VL);
  for (int i = 0; i < PV; i++) {
    a->out[i] = acc[0][i];
    for (int u = 1; u < UNROLL; u++) a->out[i] += acc[u][i];
  }
}

// Norm (where the model has one), rotation by the row's position, scale.
static inline void turn(const step_args *a, int64_t row, const float *from, const float *norm, float scale, float *to) {
  const float *c = a->cos + a->positions[row] * (P / 2), *s = a->sin + a->positions[row] * (P / 2);
  float x[P];
  if (norm) {
    float squares = 0;
    for (int i = 0; i < P; i++) squares += from[i] * from[i];
    const float by = 1 / sqrtf(squares / P + a->eps);
    for (int i = 0; i < P; i++) x[i] = from[i] * by * norm[i];
  } else {
    memcpy(x, from, sizeof x);
  }
  for (int i = 0; i < P / 2; i++) {
    to[i] = (x[i] * c[i] - x[i + P / 2] * s[i]) * scale;
    to[i + P / 2] = (x[i + P / 2] * c[i] + x[i] * s[i]) * scale;
  }
}

static void attend(const step_args *a, const layer *l, int64_t row, int64_t head) {
  const int64_t kv = a->kv_heads, n = a->tail_len[row], tail = (row * kv + head) * W * P;
  const float *qkv = a->wide + row * a->ld_wide;
  float q[G][P], s[W], *k = l->tail_k + tail, *v = l->tail_v + tail;
  softmax state[G];
  for (int g = 0; g < G; g++) {
    turn(a, row, qkv + (head * G + g) * P, l->q_norm, a->scale, q[g]);
    state[g].peak = -INFINITY, state[g].total = 0;
    for (int i = 0; i < PV; i++) state[g].out[i] = all(0.0f);
  }
  turn(a, row, qkv + (a->heads + head) * P, l->k_norm, 1, k + n * P);
  memcpy(v + n * P, qkv + (a->heads + kv + head) * P, sizeof(float) * P);
  for (int64_t span = 0; span < a->spans[row]; span++) {
    const int64_t at = (a->pages[row * a->max_spans + span] * kv + head) * P * W;
    const float *page = l->page_k + at;
    for (int g = 0; g < G; g++) {
      vf acc[WV];
      for (int i = 0; i < WV; i++) acc[i] = all(0.0f);
      for (int p = 0; p < P; p++)
        for (int i = 0; i < WV; i++) acc[i] += all(q[g][p]) * load(page + p * W + i * VL);
      for (int i = 0; i < WV; i++) store(s + i * VL, acc[i]);
      absorb(&state[g], s, l->page_v + at, a->filled[row * a->max_spans + span]);
    }
  }
  for (int g = 0; g < G; g++) {
    for (int64_t w = 0; w <= n; w++) {
      vf acc = all(0.0f);
      for (int i = 0; i < PV; i++) acc += load(q[g] + i * VL) * load(k + w * P + i * VL);
      s[w] = sum(acc);
    }
    absorb(&state[g], s, v, n + 1);
    float *out = a->mid + row * a->ld_mid + (head * G + g) * P;
    for (int i = 0; i < PV; i++) store(out + i * VL, state[g].out[i] / all(state[g].total));
  }
}

// ---- A mixer's row and key-value head: convolution, SiLU, recurrence, skip, gate, norm of each head ----

// Channels [from, from + n) of the convolution, activated, to out [n]; the row's window moves on.
static inline void convolve(const layer *l, const float *now, float *past, int64_t c, int64_t from, int n, float *out) {
  int i = 0;
  for (; i + VL <= n; i += VL) {
    const int64_t at = from + i;
    vf x = load(now + at), y = load(l->conv_bias + at) + x * load(l->taps + (TAPS - 1) * c + at);
    for (int t = 0; t < TAPS - 1; t++) {
      vf old = load(past + t * c + at);
      y += old * load(l->taps + t * c + at);
      if (t) store(past + (t - 1) * c + at, old);
    }
    store(past + (TAPS - 2) * c + at, x);
    store(out + i, silu(y));
  }
  for (; i < n; i++) {
    const int64_t at = from + i;
    float y = l->conv_bias[at] + now[at] * l->taps[(TAPS - 1) * c + at];
    for (int t = 0; t < TAPS - 1; t++) {
      y += past[t * c + at] * l->taps[t * c + at];
      if (t) past[(t - 1) * c + at] = past[t * c + at];
    }
    past[(TAPS - 2) * c + at] = now[at];
    out[i] = silu1(y);
  }
}

static void recur(const step_args *a, const layer *l, int64_t row, int64_t head) {
  const int64_t kv = a->mixer_heads, heads = a->heads, inner = heads * P, c = kv * (P + N) + heads * N;
  const float *z = a->wide + row * a->ld_wide, *now = z + inner, *dts = now + c;
  float *past = l->conv + row * (TAPS - 1) * c, x[P], b[N], q[M * N];
  convolve(l, now, past, c, head * P, P, x);
  convolve(l, now, past, c, kv * P + head * N, N, b);
  convolve(l, now, past, c, kv * (P + N) + head * M * N, M * N, q);
  for (int m = 0; m < M; m++) {
    const int64_t h = head * M + m;
    const float raw = dts[h] + l->dt_bias[h], dt = raw > 20 ? raw : log1pf(expf(raw)), keep = expf(dt * l->rates[h]);
    float *s = l->state + (row * heads + h) * N * P;
    vf in[PV], y[UNROLL][PV];
    for (int j = 0; j < PV; j++) {
      in[j] = load(x + j * VL) * all(dt);
      for (int u = 0; u < UNROLL; u++) y[u][j] = all(0.0f);
    }
    for (int n = 0; n < N; n += NU)
      for (int u = 0; u < NU; u++)
        for (int j = 0; j < PV; j++) {
          float *at = s + (n + u) * P + j * VL;
          vf v = load(at) * all(keep) + in[j] * all(b[n + u]);
          store(at, v);
          y[u][j] += v * all(q[m * N + n + u]);
        }
    vf squares = all(0.0f);
    for (int j = 0; j < PV; j++) {
      for (int u = 1; u < UNROLL; u++) y[0][j] += y[u][j];
      y[0][j] = (y[0][j] + all(l->skip[h]) * load(x + j * VL)) * silu(load(z + h * P + j * VL));
      squares += y[0][j] * y[0][j];
    }
    const float by = 1 / sqrtf(sum(squares) / P + a->eps);
    float *out = a->mid + row * a->ld_mid + h * P;
    for (int j = 0; j < PV; j++) store(out + j * VL, y[0][j] * all(by) * load(l->gate_norm + h * P + j * VL));
  }
}

// ---- The step ----

int64_t columns(void) { return COLUMNS; }

void step(const step_args *a) {
#pragma omp parallel num_threads(a->threads)
  {
    float *normed = a->normed + omp_get_thread_num() * a->rows * a->ld_x;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a->rows; row++)
      memcpy(a->x + row * a->ld_x, a->embed + a->tokens[row] * a->d, sizeof(float) * a->d);
    for (int64_t i = 0; i < a->n_layers; i++) {
      const layer *l = a->layers + i;
      rms_norm(a, l->input_norm, normed);
      product(normed, a->ld_x, &l->in, a->rows, STORE, a->wide, a->ld_wide);
#pragma omp barrier
      // Rows differ in length, so threads take a few heads at a time, and few where there are few.
      const int64_t parts = l->mamba ? a->mixer_heads : a->kv_heads, items = a->rows * parts;
      const int64_t some = items / (8 * a->threads) + 1;
#pragma omp for schedule(dynamic, some < 8 ? some : 8)
      for (int64_t item = 0; item < items; item++) {
        if (l->mamba) recur(a, l, item / parts, item % parts);
        else attend(a, l, item / parts, item % parts);
      }
      product(a->mid, a->ld_mid, &l->out, a->rows, ADD, a->x, a->ld_x);
#pragma omp barrier
      rms_norm(a, l->post_norm, normed);
      product(normed, a->ld_x, &l->up, a->rows, GATED, a->wide, a->ld_wide);
#pragma omp barrier
      product(a->wide, a->ld_wide, &l->down, a->rows, ADD, a->x, a->ld_x);
#pragma omp barrier
    }
    rms_norm(a, a->norm, normed);
    product(normed, a->ld_x, &a->head, a->rows, STORE, a->logits, a->ld_logits);
  }
}

// ---- The sampler: rows without filters ----

typedef struct {
  const float *logits;               // [B, ld]
  const float *inverse_temperature;  // [B]
  const float *uniform;              // [B] in [0, 1)
  const uint8_t *greedy;             // [B]
  int64_t *tokens;                   // [B] out
  float *logprobs;                   // [B] out
  uint8_t *finite;                   // [B] out
  float *certainty;                  // [B] out: KL(uniform, model) at temperature 1
  int64_t rows, ld, vocab, threads;
} draw_args;

#define CHUNK 512

static inline float mass(const float *l, int64_t n, float peak, float by) {
  vf t = all(0.0f);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) t += vexp((load(l + i) - all(peak)) * all(by));
  float s = sum(t);
  for (; i < n; i++) s += expf((l[i] - peak) * by);
  return s;
}

static void draw_row(const draw_args *a, int64_t row) {
  const float *l = a->logits + row * a->ld, by = a->inverse_temperature[row];
  const int64_t v = a->vocab, chunks = (v + CHUNK - 1) / CHUNK;
  vf m = all(l[0]), zero = all(0.0f), whole = all(0.0f);
  float peak = l[0], odd = 0, rest = 0;
  int64_t i = 0, token = 0;
  for (; i + VL <= v; i += VL) {
    vf x = load(l + i);
    m = vmax(x, m);
    whole += x;
    zero += x * all(0.0f);  // stays 0 unless something is infinite or no number
  }
  for (; i < v; i++) peak = l[i] > peak ? l[i] : peak, rest += l[i], odd += l[i] * 0;
  const float best = largest(m);
  peak = best > peak ? best : peak;
  a->finite[row] = sum(zero) + odd == 0;
  a->tokens[row] = 0, a->logprobs[row] = a->certainty[row] = NAN;
  if (!a->finite[row]) return;
  float total = 0, warm = 0, sums[chunks];
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t n = v - c * CHUNK < CHUNK ? v - c * CHUNK : CHUNK;
    const float one = mass(l + c * CHUNK, n, peak, 1);
    sums[c] = by == 1 ? one : mass(l + c * CHUNK, n, peak, by);
    total += one, warm += sums[c];
  }
  if (a->greedy[row]) {
    while (l[token] != peak) token++;
  } else {
    const float target = a->uniform[row] * warm;
    float below = 0;
    int64_t c = 0;
    for (; c + 1 < chunks && below + sums[c] <= target; c++) below += sums[c];
    const int64_t end = v - c * CHUNK < CHUNK ? v : (c + 1) * CHUNK;
    token = -1;
    for (int64_t t = c * CHUNK; t < end; t++) {
      const float p = expf((l[t] - peak) * by);
      if (p > 0) token = t;
      below += p;
      if (p > 0 && below > target) break;
    }
    // A last chunk whose sum is all rounding may hold nothing: then the most likely token stands for it.
    if (token < 0) for (token = 0; l[token] != peak;) token++;
  }
  a->tokens[row] = token;
  const float logsum = peak + logf(total);
  a->logprobs[row] = l[token] - logsum;
  a->certainty[row] = logsum - (sum(whole) + rest) / v - logf(v);
}

void draw(const draw_args *a) {
#pragma omp parallel for schedule(static) num_threads(a->threads)
  for (int64_t row = 0; row < a->rows; row++) draw_row(a, row);
}
