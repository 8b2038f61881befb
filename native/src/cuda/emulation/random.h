// Numbers that look random and are the same in every run with the same seed.
#pragma once

#include <cstdint>

namespace moepic::simt {

// The x-th number of splitmix64 (Steele, Lea, Flood 2014).
inline uint64_t random_of(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

}  // namespace moepic::simt
