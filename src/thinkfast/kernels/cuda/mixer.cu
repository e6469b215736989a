// One Mamba step between its two projections, a block for a row and a group of heads: convolution, SiLU, gates, state,
// skip, gate and norm. What it computes, and why a state is read in every step and written in every D-th only, stands
// in triton/mixer.py; this is that in one kernel, for states in bf16.
//
// Why not Triton's: there a small vector is rearranged between threads whenever it meets the state's tile, so that one
// kernel for it all is slower than two, of which the first waits for memory most of the time. Here the state comes to
// shared memory by itself (cp.async.bulk) while the small vectors are worked out, and a lane finds eight neighbours of
// a line there, so that sums over a line are a few exchanges within a warp.
//
// Legend: H heads, K key-value heads, G = H / K, P head dim, N state, W convolution width, D inputs held; WIDE entries
// of a row that has yet to be divided by its root mean square, or 0; ODD: rows begin at odd multiples of two bytes;
// BLOCKS that a multiprocessor should have room for; SHARED bytes of a block's. All are constants of the compiler's
// (mixer.py).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

#define G (H / K)
#define CHANNELS (K * P + K * N + H * N)
#define WIDTH (P + N + G * N)                    // channels of a group
#define PARTS (P * N > 2048 ? P * N / 2048 : 1)  // warps a head
#define THREADS (32 * G * PARTS)
#define LANES (N / 8)                            // that share a line of the state
#define LINES (32 / LANES)                       // that a warp has at once
#define PIECES (P * N / (256 * PARTS))           // of 16 bytes that a lane has
#define OWN (PIECES >= LANES ? PIECES / LANES : 1)     // lines that a lane finishes
#define COPIES (PIECES >= LANES ? 1 : LANES / PIECES)  // lanes that finish the same
#define PAIRS (WIDTH / 2)
#define EACH ((PAIRS + THREADS - 1) / THREADS)

__device__ __forceinline__ float low(u32 two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high(u32 two) { return __uint_as_float(two & 0xFFFF0000u); }
__device__ __forceinline__ float one(u16 x) { return __uint_as_float((u32)x << 16); }

// Two numbers rounded to bf16.
__device__ __forceinline__ u32 rounded(float a, float b) {
    u32 two;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(b), "f"(a));
    return two;
}

// As in triton/silu.py.
__device__ __forceinline__ float silu(float x) {
    float t;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(t + 1.0f));
    return x * t;
}

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : __logf(1.0f + __expf(x)); }

// uint32 to uint32 that looks random (lowbias32), as in triton/mixer_kernels.py.
__device__ __forceinline__ u32 noise(u32 x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return x ^ (x >> 16);
}

__device__ __forceinline__ u32 place(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// Read here, and not moved down to where it is used.
__device__ __forceinline__ u16 read1(const u16* at) {
    u16 v;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(at));
    return v;
}
__device__ __forceinline__ u32 read2(const u16* at) {
#if ODD
    return read1(at) | (u32)read1(at + 1) << 16;
#else
    u32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(at));
    return v;
#endif
}

// Copies that arrive by themselves: a barrier of the block's counts their bytes. What they bring is read once a step, so
// it is the first to go from the L2.
__device__ __forceinline__ void expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(place(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bring(void* to, const void* from, u32 bytes, u64* barrier) {
    asm volatile("{\n.reg .b64 p;\ncreatepolicy.fractional.L2::evict_first.b64 p, 1.0;\n"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
                 " [%0], [%1], %2, [%3], p;\n}"
                 :: "r"(place(to)), "l"(from), "r"(bytes), "r"(place(barrier)) : "memory");
}
__device__ __forceinline__ void arrived(u64* barrier) {
    asm volatile("{\n.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n@!p bra again;\n}"
                 :: "r"(place(barrier)) : "memory");
}

__device__ __forceinline__ float summed(float x) {
#pragma unroll
    for (int m = 16; m; m /= 2) x += __shfl_xor_sync(~0u, x, m);
    return x;
}

// Of a block's channels the c-th, among all.
__device__ __forceinline__ int channel(int c, int kv) {
    if (c < P) return kv * P + c;
    if (c < P + N) return K * P + kv * N + c - P;
    return K * P + K * N + kv * G * N + c - P - N;
}

struct Shared {
    alignas(128) u16 state[G * P * N];
    alignas(16) u16 ring[W - 1][WIDTH];  // the latest inputs first
    alignas(16) u16 held[D][P + N];
    alignas(16) float cs[G][N];
    float squares[G * PARTS];
    u64 rings, whole;
};
static_assert(sizeof(Shared) <= SHARED, "mixer.py counts less");
extern __shared__ __align__(128) unsigned char memory[];

// B * K blocks.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) mixer(
    const u16* projected, u16* conv, u16* ssm, u16* held, float* steps, const float* __restrict__ taps,
    const float* __restrict__ bias, const float* __restrict__ rates, const float* __restrict__ dt_bias,
    const float* __restrict__ skip, const float* __restrict__ norm, u16* out, const u16* residual,
    const int* __restrict__ active, const i64* position, const i64* drawn, const i64* key,
    float eps, float wide_eps, i64 stride, u32 layer) {
    Shared& own = *reinterpret_cast<Shared*>(memory);
    const int b = blockIdx.x / K, kv = blockIdx.x % K, t = threadIdx.x, lane = t % 32, warp = t / 32;
    const int head = warp / PARTS, h = kv * G + head, sub = lane % LANES;
    // The first of a warp's lines; its lane has pieces of lines first + j * LINES + lane / LANES.
    const int first = warp % PARTS * (P / PARTS);
    const i64 slot = active[b];
    u16* const state = ssm + (slot * H + kv * G) * P * N;
    if (t == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(place(&own.whole)));
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(place(&own.rings)));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect(&own.whole, sizeof own.state);
        bring(own.state, state, sizeof own.state, &own.whole);
    }
    const i64 at = position[slot], mine = key[slot], done = drawn[slot] - 1;
    const int phase = (int)((u64)(done + ((mine >> 8) & 0xFF)) % D), ring = (int)((u64)at % W);
    const int count = 1 + (done < phase ? (int)done : phase);
    held += slot * D * K * (P + N) + kv * (P + N);
    conv += slot * W * CHANNELS;
    if (warp == 0) {
        if (lane == 0) expect(&own.rings, sizeof own.ring + (count - 1) * sizeof own.held[0]);
        __syncwarp();
        if (lane < 3 * (W - 1)) {
            const int w = lane / 3 + 1, c = lane % 3 == 0 ? 0 : lane % 3 == 1 ? P : P + N;
            const int n = lane % 3 == 0 ? P : lane % 3 == 1 ? N : G * N;
            bring(own.ring[w - 1] + c, conv + (ring + W - w) % W * CHANNELS + channel(c, kv), 2 * n, &own.rings);
        } else if (lane - 3 * (W - 1) < count - 1) {
            const int j = phase - 1 - (lane - 3 * (W - 1));
            bring(own.held[j], held + j * K * (P + N), sizeof own.held[0], &own.rings);
        }
    }
    float2 tap[EACH][W], start[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        // Those without a pair of their own read the last one's.
        const int i = t + e * THREADS, c = channel(2 * (i < PAIRS ? i : PAIRS - 1), kv);
        start[e] = *reinterpret_cast<const float2*>(bias + c);
#pragma unroll
        for (int w = 0; w < W; w++) tap[e][w] = *reinterpret_cast<const float2*>(taps + (W - 1 - w) * CHANNELS + c);
    }
    steps += slot * D * H + h;
    float step[D];
#pragma unroll
    for (int j = 1; j < D; j++) step[j] = j < count ? steps[(phase - j) * H] : 0.0f;
    const float rate = rates[h], skipped = skip[h], dt_start = dt_bias[h];
    float inverse = 1.0f;
#if WIDE
    // What was projected was there before the projection began.
    float square = 0.0f;
#pragma unroll
    for (int e = 0; e < (WIDE + 8 * THREADS - 1) / (8 * THREADS); e++) {
        const int i = 8 * (t + e * THREADS);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (i < WIDE) v = *reinterpret_cast<const uint4*>(residual + (i64)b * WIDE + i);
        const u32 two[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) square += low(two[j]) * low(two[j]) + high(two[j]) * high(two[j]);
    }
    square = summed(square);
    if (lane == 0) own.squares[warp] = square;
#endif
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const u16* const row = projected + b * stride;
    u32 now[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int i = t + e * THREADS;
        now[e] = read2(row + H * P + channel(2 * (i < PAIRS ? i : PAIRS - 1), kv));
    }
    float raw = one(read1(row + H * P + CHANNELS + h));
    // A lane's lines: those of the pieces that it keeps when sums are exchanged.
    int kept = 0;
#pragma unroll
    for (int m = LANES / 2, n = PIECES; m && n > 1; m /= 2, n /= 2) kept += sub & m ? n / 2 : 0;
    const int line = first + kept * LINES + lane / LANES;
    float z[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) z[i] = one(read1(row + h * P + line + i * LINES));
    __syncthreads();
#if WIDE
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < G * PARTS; i++) total += own.squares[i];
    inverse = rsqrtf(total / WIDE + wide_eps);
    raw *= inverse;
#endif
    arrived(&own.rings);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int i = t + e * THREADS, c = 2 * i;
        if (i < PAIRS) {
            // The ring holds what a norm in front would have made of them.
            if (WIDE) now[e] = rounded(low(now[e]) * inverse, high(now[e]) * inverse);
            *reinterpret_cast<u32*>(conv + ring * CHANNELS + channel(c, kv)) = now[e];
            float2 sum = start[e];
#pragma unroll
            for (int w = W - 1; w >= 0; w--) {
                const u32 input = w ? *reinterpret_cast<u32*>(own.ring[w - 1] + c) : now[e];
                sum.x += low(input) * tap[e][w].x, sum.y += high(input) * tap[e][w].y;
            }
            const u32 two = rounded(silu(sum.x), silu(sum.y));
            if (c < P + N) {
                *reinterpret_cast<u32*>(held + phase * K * (P + N) + c) = two;
                *reinterpret_cast<u32*>(own.held[phase] + c) = two;
            } else {
                *reinterpret_cast<float2*>(&own.cs[0][0] + c - P - N) = make_float2(low(two), high(two));
            }
        }
    }
    const float dt = softplus(raw + dt_start);
    if (lane == 0 && warp % PARTS == 0) steps[phase * H] = dt;
    float weight[D], gone = dt * rate;
    weight[0] = dt;
#pragma unroll
    for (int j = 1; j < D; j++) {
        weight[j] = __expf(gone) * step[j];
        gone += step[j] * rate;
    }
    const float decay = __expf(gone);
    __syncthreads();

    // C . B of each input there is, 32 / D lanes an input.
    const int input = lane / (32 / D);
    float inner = 0.0f;
    if (input < count) {
#pragma unroll
        for (int n = lane % (32 / D); n < N; n += 32 / D)
            inner += own.cs[head][n] * one(own.held[phase - input][P + n]);
    }
#pragma unroll
    for (int m = 16 / D; m; m /= 2) inner += __shfl_xor_sync(~0u, inner, m);
    float rest[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) rest[i] = skipped * one(own.held[phase][line + i * LINES]);
#pragma unroll
    for (int j = 0; j < D; j++) {
        const float by = weight[j] * __shfl_sync(~0u, inner, j * (32 / D));
        if (j < count) {
#pragma unroll
            for (int i = 0; i < OWN; i++) rest[i] += by * one(own.held[phase - j][line + i * LINES]);
        }
    }
    // S C: a lane's share of each line, then exchanged so that each has lines of its own.
    arrived(&own.whole);
    const uint4* const pieces = reinterpret_cast<const uint4*>(own.state + (head * P + first) * N) + lane;
    float y[PIECES];
    {
        const float4 c0 = *reinterpret_cast<const float4*>(&own.cs[head][8 * sub]);
        const float4 c1 = *reinterpret_cast<const float4*>(&own.cs[head][8 * sub + 4]);
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            const uint4 s = pieces[32 * j];
            y[j] = low(s.x) * c0.x + high(s.x) * c0.y + low(s.y) * c0.z + high(s.y) * c0.w
                 + low(s.z) * c1.x + high(s.z) * c1.y + low(s.w) * c1.z + high(s.w) * c1.w;
        }
    }
#pragma unroll
    for (int m = LANES / 2, n = PIECES; m; m /= 2) {
        if (n > 1) {
            n /= 2;
#pragma unroll
            for (int j = 0; j < n; j++) {
                const float give = sub & m ? y[j] : y[j + n];
                y[j] = (sub & m ? y[j + n] : y[j]) + __shfl_xor_sync(~0u, give, m);
            }
        } else {
            y[0] += __shfl_xor_sync(~0u, y[0], m);
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        y[i] = (y[i] * decay + rest[i]) * silu(z[i] * inverse);
        squares += y[i] * y[i];
    }
    squares = summed(squares) / COPIES;
#if PARTS > 1
    if (lane == 0) own.squares[warp] = squares;
    __syncthreads();
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS; i++) squares += own.squares[head * PARTS + i];
#endif
    const float root = rsqrtf(squares / P + eps);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int p = h * P + line + i * LINES;
        if (COPIES == 1 || sub % COPIES == 0) out[(i64)b * H * P + p] = (u16)rounded(y[i] * root * norm[p], 0.0f);
    }
    if (phase != D - 1) return;

    // The row's turn to write, rounded at random in proportion to the two neighbours.
    const u32 seed = noise((u32)(mine ^ (mine >> 32)) + (u32)at * 0x9E3779B1u + layer * 0x85EBCA6Bu);
    u32 column[8];
#pragma unroll
    for (int n = 0; n < 8; n++) column[n] = noise(seed ^ (u32)(8 * sub + n) * 0x9E3779B1u);
    uint4* const to = reinterpret_cast<uint4*>(state + (head * P + first) * N) + lane;
    // Not unrolled: what that takes of registers is missing to all blocks, of which a few write.
#pragma unroll 1
    for (int j = 0; j < PIECES; j++) {
        const int p = first + j * LINES + lane / LANES;
        const u32 across = noise(seed + (u32)(h * P + p));
        const uint4 s = pieces[32 * j];
        u32 two[4] = {s.x, s.y, s.z, s.w};
        float found[8];
#pragma unroll
        for (int n = 0; n < 8; n++) found[n] = (n % 2 ? high(two[n / 2]) : low(two[n / 2])) * decay;
#pragma unroll
        for (int i = D - 1; i >= 0; i--) {
            if (i < count) {
                const float x = weight[i] * one(own.held[phase - i][p]);
                const uint4 line_b = *reinterpret_cast<const uint4*>(own.held[phase - i] + P + 8 * sub);
                const u32 bs[4] = {line_b.x, line_b.y, line_b.z, line_b.w};
#pragma unroll
                for (int n = 0; n < 8; n++) found[n] += x * (n % 2 ? high(bs[n / 2]) : low(bs[n / 2]));
            }
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
            found[n] = __uint_as_float(__float_as_uint(found[n]) + (((across ^ column[n]) * 0x9E3779B1u) >> 16));
#pragma unroll
        for (int n = 0; n < 4; n++)
            two[n] = (__float_as_uint(found[2 * n]) >> 16) | (__float_as_uint(found[2 * n + 1]) & 0xFFFF0000u);
        __stcs(to + 32 * j, make_uint4(two[0], two[1], two[2], two[3]));
    }
}
