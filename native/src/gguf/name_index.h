// Finds a name among many: positions sorted by name. Sorting costs n log n whatever the names are, while a hash table without a secret
// seed can be made quadratic by a file that was built for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace moepic::gguf {

class NameIndex {
public:
    template <class Items, class NameOf>
    void build(const Items& items, NameOf name_of) {
        entries_.clear();
        entries_.reserve(items.size());
        for (size_t i = 0; i < items.size(); ++i) entries_.emplace_back(name_of(items[i]), i);
        std::sort(entries_.begin(), entries_.end());
    }

    // Positions of two items with one name, the earlier first.
    std::optional<std::pair<size_t, size_t>> duplicate() const {
        const auto twin =
            std::adjacent_find(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
        if (twin == entries_.end()) return std::nullopt;
        return std::pair{twin->second, std::next(twin)->second};
    }

    std::optional<size_t> find(std::string_view name) const {
        const auto found =
            std::lower_bound(entries_.begin(), entries_.end(), name, [](const auto& entry, std::string_view n) { return entry.first < n; });
        if (found == entries_.end() || found->first != name) return std::nullopt;
        return found->second;
    }

private:
    std::vector<std::pair<std::string_view, size_t>> entries_;
};

}  // namespace moepic::gguf
