// Tables of the decoders, filled when the library is loaded.
#include "decode_bf16.h"

namespace dsv4 {

namespace {

float power(int byte) { return byte == 255 ? NAN : std::ldexp(1.0f, byte - 127); }

PowerTables make_powers() {
    PowerTables t;
    for (int b = 0; b < 256; b++) {
        t.scale[b] = power(b);
        t.times_2_120[b] = b == 255 ? NAN : std::ldexp(1.0f, b - 127 + 120);
    }
    return t;
}

Fp4Tables make_fp4() {
    const float magnitude[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    Fp4Tables t;
    for (int b = 0; b < 256; b++)
        for (int code = 0; code < 16; code++) {
            const float value = (code < 8 ? magnitude[code] : -magnitude[code - 8]) * power(b);
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            t.at[b].low[code] = uint8_t(bits >> 16);
            t.at[b].high[code] = uint8_t(bits >> 24);
        }
    return t;
}

Fp8Tables make_fp8() {
    Fp8Tables t;
    for (int b = 0; b < 256; b++)
        for (int code = 0; code < 128; code++) {
            const int exponent = code >> 3, fraction = code & 7;
            const float size = exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(fraction, -9);
            const float value = size * power(b);
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            t.at[b].low[code] = uint8_t(bits >> 16);
            t.at[b].high[code] = uint8_t(bits >> 24);
        }
    return t;
}

}  // namespace

const PowerTables POWERS = make_powers();
const Fp4Tables FP4_TABLES = make_fp4();
const Fp8Tables FP8_TABLES = make_fp8();

}  // namespace dsv4
