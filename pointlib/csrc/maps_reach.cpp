// Every voxel that some tap of a convolution reaches, forward or, for a generative one, backward.
//
// A tap moves each axis by itself, and moves sorted voxels to sorted voxels. So the voxels are
// spread along z, then along y, then along x, each time by merging one sorted list a tap; what
// several taps reach is there once before the next axis multiplies it. Ranges of x are independent.
#include <limits>
#include <vector>

#include "maps.h"

namespace pointlib {

namespace {

constexpr int64_t FURTHEST = std::numeric_limits<int64_t>::max();

// What the taps do to the coordinates of one axis.
class Axis {
 public:
  // `shape` < 0 is no bound.
  Axis(const Geometry& geometry, int axis, bool generative, int64_t shape)
      : size(geometry.kernel_size[axis]),
        stride_(geometry.stride[axis]),
        padding_(geometry.padding[axis]),
        dilation_(geometry.dilation[axis]),
        end_(shape < 0 ? FURTHEST : shape),
        begin_(shape < 0 ? -FURTHEST : 0),
        generative_(generative),
        by_(stride_) {}

  const int64_t size;

  // Whether the tap leads anywhere from `at`, and where to.
  bool reach(int64_t at, int64_t tap, int64_t* out) const {
    if (generative_) {
      *out = stride_ * at + dilation_ * tap - padding_;
      return true;
    }
    const int64_t moved = at + padding_ - dilation_ * tap;
    *out = by_.floor(moved);
    return (*out * stride_ == moved) & (*out >= begin_) & (*out < end_);  // seldom foreseen
  }

  // Bounds of where the taps lead from `at`; false if nowhere.
  bool range(int64_t at, int64_t* low, int64_t* high) const {
    *low = FURTHEST;
    *high = -FURTHEST;
    for (int64_t tap = 0; tap < size; tap++) {
      int64_t out;
      const bool leads = reach(at, tap, &out);
      *low = leads ? std::min(*low, out) : *low;
      *high = leads ? std::max(*high, out) : *high;
    }
    return *low <= *high;
  }

  // No voxel below this one leads to `out` or further, and none above the other to `out` or less.
  int64_t first_source(int64_t out) const {
    if (!generative_) return stride_ * out - padding_;
    return by_.floor(out + padding_ - dilation_ * (size - 1));
  }
  int64_t last_source(int64_t out) const {
    if (!generative_) return stride_ * out - padding_ + dilation_ * (size - 1);
    return by_.floor(out + padding_);
  }
  // Somewhere near where `at` leads.
  int64_t near(int64_t at) const {
    return generative_ ? stride_ * at - padding_ : by_.floor(at + padding_);
  }

 private:
  int64_t stride_, padding_, dilation_, end_, begin_;
  bool generative_;
  Divisor by_;
};

// One field of a key, before and after its axis is spread; the fields below it stay the same.
struct Field {
  int shift, old_bits, new_bits;
  int64_t old_lower, new_lower;

  Field(const Layout& before, const Layout& after, int axis)
      : shift(after.shift[axis]),
        old_bits(before.shift[axis - 1] - before.shift[axis]),
        new_bits(after.shift[axis - 1] - after.shift[axis]),
        old_lower(before.lower[axis]),
        new_lower(after.lower[axis]) {}
  int64_t get(Key key) const {
    return static_cast<int64_t>(key >> shift & ((Key{1} << old_bits) - 1)) + old_lower;
  }
  Key set(Key key, int64_t value) const {
    const Key below = key & ((Key{1} << shift) - 1);
    return (key >> shift >> old_bits << new_bits << shift) + below +
           (static_cast<Key>(value - new_lower) << shift);
  }
};

using Keys = std::vector<Key>;

// Distinct keys of two sorted lists without repeats, each of them with a last one of ~0.
void unite(const Keys& a, const Keys& b, Keys& both) {
  both.resize(a.size() + b.size());
  size_t i = 0, j = 0, count = 0;
  for (const size_t last = a.size() + b.size() - 2; i + j < last;) {
    const Key left = a[i], right = b[j];
    both[count++] = std::min(left, right);
    i += left <= right;
    j += right <= left;
  }
  both[count++] = ~Key{0};
  both.resize(count);
}

// Sorted keys spread along one axis; a last one of ~0 stands behind both.
Keys spread(const Keys& keys, const Axis& axis, const Field& field) {
  Keys all{~Key{0}}, one, both;
  for (int64_t tap = 0; tap < axis.size; tap++) {
    one.resize(keys.size());
    Key* to = one.data();
    for (size_t i = 0; i + 1 < keys.size(); i++) {
      int64_t out;
      const bool leads = axis.reach(field.get(keys[i]), tap, &out);
      *to = field.set(keys[i], out);
      to += leads;
    }
    *to++ = ~Key{0};
    one.resize(static_cast<size_t>(to - one.data()));
    unite(all, one, both);
    all.swap(both);
  }
  return all;
}

// A place among sorted keys: the batch entry and x that keys before it do not reach.
struct Cut {
  int64_t batch, x;
};

Key key_of(const Layout& layout, const Cut& cut) {
  const int64_t width = int64_t{1} << (layout.shift[0] - layout.shift[1]);
  const int64_t x = std::clamp<int64_t>(cut.x - layout.lower[1], 0, width);
  const Key batch = static_cast<Key>(cut.batch - layout.lower[0]);
  return (batch << layout.shift[0]) + (static_cast<Key>(x) << layout.shift[1]);
}

class Reach {
 public:
  Reach(const int32_t* coords, int64_t rows, const Geometry& geometry, bool generative,
        const int64_t* shape)
      : coords_(coords),
        blocks_(blocks_of(rows)),
        leads_(scratch<uint8_t>(rows)),
        axes_{axis(geometry, 0, generative, shape), axis(geometry, 1, generative, shape),
              axis(geometry, 2, generative, shape)} {}

  std::unique_ptr<Sites> search(int64_t threads, Report* report);

 private:
  static Axis axis(const Geometry& geometry, int number, bool generative, const int64_t* shape) {
    return Axis(geometry, number, generative, shape == nullptr ? -1 : shape[number]);
  }
  void find_bounds(int64_t threads);
  bool choose_layouts(Report* report);
  Scratch<Key> pack_rows(int64_t* count, int64_t threads) const;
  Keys spread_part(const Key* keys, const Key* end, const Cut& from, const Cut& to) const;

  const int32_t* coords_;
  Blocks blocks_;
  Scratch<uint8_t> leads_;  // whether a row leads somewhere, in all axes
  Axis axes_[3];
  Box inputs_, outputs_;         // of rows that lead somewhere, and of where they lead
  std::vector<Layout> layouts_;  // before z is spread, before y, before x, and after
};

Box nothing() {
  Box box;
  std::fill(box.low, box.low + 4, FURTHEST);
  std::fill(box.high, box.high + 4, -FURTHEST);
  return box;
}

void Reach::find_bounds(int64_t threads) {
  std::vector<Box> inputs(static_cast<size_t>(blocks_.number()), nothing()), outputs = inputs;
  for_blocks(blocks_.number(), threads, [&](int64_t block, int64_t) {
    Box in = nothing(), out = nothing();
    for (int64_t row = blocks_.begin(block); row < blocks_.end(block); row++) {
      const int32_t* at = coords_ + 4 * row;
      const Box self{{at[0], at[1], at[2], at[3]}, {at[0], at[1], at[2], at[3]}};
      Box led = self;
      leads_[row] = 1;
      for (int axis = 1; axis < 4; axis++) {
        leads_[row] &= axes_[axis - 1].range(at[axis], &led.low[axis], &led.high[axis]);
      }
      if (leads_[row]) {
        in.cover(self);
        out.cover(led);
      }
    }
    inputs[static_cast<size_t>(block)] = in;
    outputs[static_cast<size_t>(block)] = out;
  });
  inputs_ = outputs_ = nothing();
  for (const Box& box : inputs) inputs_.cover(box);
  for (const Box& box : outputs) outputs_.cover(box);
}

bool Reach::choose_layouts(Report* report) {
  const Layout last(outputs_);
  report->accept(outputs_, last);
  const int64_t lowest = *std::min_element(outputs_.low, outputs_.low + 4);
  const int64_t highest = *std::max_element(outputs_.high, outputs_.high + 4);
  if (lowest < INT32_MIN || highest > INT32_MAX) report->status = BEYOND_INT32;
  Box box = inputs_;
  for (int axis = 3; axis >= 0 && report->status == FINE; axis--) {
    layouts_.emplace_back(box);
    if (!report->accept(box, layouts_.back())) break;
    box.low[axis] = outputs_.low[axis];
    box.high[axis] = outputs_.high[axis];
  }
  return report->status == FINE;
}

// Keys of the rows that lead somewhere, distinct and ascending.
Scratch<Key> Reach::pack_rows(int64_t* count, int64_t threads) const {
  const int64_t unit[3] = {1, 1, 1}, none[3] = {0, 0, 0};
  const Packing key_of(layouts_[0], unit, none);
  Scratch<Key> keys = scratch<Key>(blocks_.count + 1);
  Key* to = keys.get();
  for (int64_t row = 0; row < blocks_.count; row++) {
    const int32_t* at = coords_ + 4 * row;
    *to = key_of(at[0], at[1], at[2], at[3]);
    to += leads_[row];
  }
  *count = sort_distinct(keys, to - keys.get(), layouts_[0].bits, threads);
  return keys;
}

// The outputs between two cuts, from ascending keys of inputs.
Keys Reach::spread_part(const Key* keys, const Key* end, const Cut& from, const Cut& to) const {
  const Axis& x = axes_[0];
  const Key first = key_of(layouts_[0], {from.batch, x.first_source(from.x)});
  const Key last = key_of(layouts_[0], {to.batch, x.last_source(to.x - 1) + 1});
  keys = std::lower_bound(keys, end, first);
  end = std::lower_bound(keys, end, last);
  Keys all(keys, end);
  all.push_back(~Key{0});
  for (int axis = 3; axis > 0; axis--) {
    const size_t stage = static_cast<size_t>(3 - axis);
    all = spread(all, axes_[axis - 1], Field(layouts_[stage], layouts_[stage + 1], axis));
  }
  all.pop_back();
  all.erase(std::lower_bound(all.begin(), all.end(), key_of(layouts_[3], to)), all.end());
  all.erase(all.begin(), std::lower_bound(all.begin(), all.end(), key_of(layouts_[3], from)));
  return all;
}

std::unique_ptr<Sites> Reach::search(int64_t threads, Report* report) {
  find_bounds(threads);
  if (inputs_.low[0] > inputs_.high[0]) inputs_ = outputs_ = Box{};  // nothing is reached
  if (!choose_layouts(report)) return nullptr;
  int64_t count = 0;
  const Scratch<Key> keys = pack_rows(&count, threads);

  // A cut every so many inputs, moved to the nearest x; the outer ones lie beyond all outputs.
  const Blocks inputs = blocks_of(count);
  const Field x_of(layouts_[0], layouts_[0], 1);
  std::vector<Cut> cuts{{outputs_.low[0], outputs_.low[1]}};
  for (int64_t block = 1; block < inputs.number(); block++) {
    const Key key = keys[inputs.begin(block)];
    const int64_t batch = static_cast<int64_t>(key >> layouts_[0].shift[0]) + layouts_[0].lower[0];
    const int64_t x = axes_[0].near(x_of.get(key));
    cuts.push_back({batch, std::clamp(x, outputs_.low[1], outputs_.high[1])});
  }
  cuts.push_back({outputs_.high[0], outputs_.high[1] + 1});

  std::vector<Keys> parts(cuts.size() - 1);
  for_blocks(static_cast<int64_t>(parts.size()), threads, [&](int64_t part, int64_t) {
    const Cut* cut = cuts.data() + part;
    parts[static_cast<size_t>(part)] = spread_part(keys.get(), keys.get() + count, cut[0], cut[1]);
  });
  std::vector<int64_t> places{0};
  for (const Keys& part : parts) {
    places.push_back(places.back() + static_cast<int64_t>(part.size()));
  }
  auto sites =
      std::unique_ptr<Sites>(new Sites{layouts_[3], scratch<Key>(places.back()), places.back()});
  for_blocks(static_cast<int64_t>(parts.size()), threads, [&](int64_t part, int64_t) {
    Keys& own = parts[static_cast<size_t>(part)];
    std::copy(own.begin(), own.end(), sites->keys.get() + places[static_cast<size_t>(part)]);
    Keys().swap(own);
  });
  return sites;
}

}  // namespace

std::unique_ptr<Sites> reached_sites(const int32_t* coords, int64_t rows, const Geometry& geometry,
                                     bool generative, const int64_t* shape, int64_t threads,
                                     Report* report) {
  return Reach(coords, rows, geometry, generative, shape).search(threads, report);
}

}  // namespace pointlib
