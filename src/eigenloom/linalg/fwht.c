/* The Walsh-Hadamard transform of rows of floats: additions in the order of the plain butterfly, whatever the blocking, so
   that a check against one can ask for equal bits. */

#include <stddef.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));

enum { BLOCK = 4096, STRIP = 32, HIGHEST = 1 << 13 };

/* Steps 1, 2 and 4, inside vectors of eight: (a, b) -> (b + a, a - b). */
static inline v8 within(v8 v)
{
    const v8 s1 = {1, -1, 1, -1, 1, -1, 1, -1}, s2 = {1, 1, -1, -1, 1, 1, -1, -1}, s4 = {1, 1, 1, 1, -1, -1, -1, -1};
    v = __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6) + v * s1;
    v = __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5) + v * s2;
    return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3) + v * s4;
}

/* Steps h, 2h and 4h of the eight vectors at p, p + h, ..., p + 7h. */
static inline void three(float *p, size_t h)
{
    v8 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = *(v8 *)(p + i * h);
    for (int i = 0; i < 8; i += 2) { b[i] = a[i] + a[i + 1]; b[i + 1] = a[i] - a[i + 1]; }
    for (int i = 0; i < 8; i++) a[i] = i & 2 ? b[i - 2] - b[i] : b[i] + b[i + 2];
    for (int i = 0; i < 8; i++) *(v8 *)(p + i * h) = i & 4 ? a[i - 4] - a[i] : a[i] + a[i + 4];
}

static inline void one(float *p, size_t h)
{
    v8 a = *(v8 *)p, b = *(v8 *)(p + h);
    *(v8 *)p = a + b;
    *(v8 *)(p + h) = a - b;
}

/* Steps h, 2h, ..., n/2 of n floats, h a multiple of eight. */
static void steps(float *x, size_t n, size_t h)
{
    for (; 8 * h <= n; h *= 8)
        for (size_t j = 0; j < n; j += 8 * h)
            for (size_t i = 0; i < h; i += 8) three(x + j + i, h);
    for (; h < n; h *= 2)
        for (size_t j = 0; j < n; j += 2 * h)
            for (size_t i = 0; i < h; i += 8) one(x + j + i, h);
}

/* All steps of n floats that stay in cache, from `from` to x, which may be the same. */
static void near(const float *from, float *x, size_t n)
{
    if (n < 8) {
        for (size_t i = 0; i < n; i++) x[i] = from[i];
        for (size_t h = 1; h < n; h *= 2)
            for (size_t j = 0; j < n; j++)
                if (!(j & h)) {
                    float a = x[j], b = x[j + h];
                    x[j] = a + b;
                    x[j + h] = a - b;
                }
        return;
    }
    for (size_t i = 0; i < n; i += 8) *(v8 *)(x + i) = within(*(const v8 *)(from + i));
    steps(x, n, 8);
}

/* Steps of n floats from `first` on, by strips of columns copied to a buffer: lines a power of two apart share a set. */
static void far(float *x, size_t n, size_t first)
{
    static _Thread_local float buffer[HIGHEST * STRIP] __attribute__((aligned(64)));
    while (first < n) {
        size_t count = n / first < HIGHEST ? n / first : HIGHEST;
        for (size_t j = 0; j < n; j += count * first)
            for (size_t c = 0; c < first; c += STRIP) {
                for (size_t r = 0; r < count; r++)
                    for (size_t i = 0; i < STRIP; i++) buffer[r * STRIP + i] = x[j + r * first + c + i];
                steps(buffer, count * STRIP, STRIP);
                for (size_t r = 0; r < count; r++)
                    for (size_t i = 0; i < STRIP; i++) x[j + r * first + c + i] = buffer[r * STRIP + i];
            }
        first *= count;
    }
}

void fwht_rows(const float *from, float *x, size_t n_rows, size_t n)
{
    for (size_t row = 0; row < n_rows; row++, from += n, x += n) {
        size_t block = n < BLOCK ? n : BLOCK;
        for (size_t j = 0; j < n; j += block) near(from + j, x + j, block);
        far(x, n, block);
    }
}
