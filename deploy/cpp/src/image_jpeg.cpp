#include "image.h"

#include "error.h"

#ifndef EAK_WITH_JPEG

namespace eak {
Image decode_jpeg(const std::uint8_t *, std::size_t, const std::string &name, int &) {
    throw KitError(EAK_ERR_IMAGE, name + " is a JPEG file, and this program was built without libjpeg. Install "
                                         "libjpeg-turbo's development package and build again, or convert it to PPM.");
}
}  // namespace eak

#else

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>

#include <jpeglib.h>
#include <jerror.h>

namespace eak {
namespace {

// An arithmetic bomb: each scan of a progressive file costs a pass over all coefficients.
constexpr int kMaxScans = 500;
constexpr long kMaxDecoderBytes = 512L << 20;

struct ErrorManager {
    jpeg_error_mgr base;
    std::jmp_buf escape;
    bool truncated, too_many_scans;
    char message[JMSG_LENGTH_MAX];
};

ErrorManager &manager(j_common_ptr info) { return *reinterpret_cast<ErrorManager *>(info->err); }

[[noreturn]] void on_error(j_common_ptr info) {
    info->err->format_message(info, manager(info).message);
    std::longjmp(manager(info).escape, 1);
}

// Damage that libjpeg repairs is passed over, as Pillow does; a missing end is none of it.
void on_message(j_common_ptr, int) {}

boolean on_end_of_data(j_decompress_ptr info) {
    auto &errors = manager(reinterpret_cast<j_common_ptr>(info));
    errors.truncated = true;
    std::longjmp(errors.escape, 1);
}

void skip(j_decompress_ptr info, long count) {
    if (count <= 0) return;
    if (std::size_t(count) > info->src->bytes_in_buffer) on_end_of_data(info);
    info->src->next_input_byte += count;
    info->src->bytes_in_buffer -= std::size_t(count);
}

void no_operation(j_decompress_ptr) {}

void on_progress(j_common_ptr info) {
    if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMaxScans) {
        manager(info).too_many_scans = true;
        std::longjmp(manager(info).escape, 1);
    }
}

int xmp_orientation(const char *text, std::size_t size) {
    static const char key[] = "tiff:Orientation";
    const char *const end = text + size;
    for (const char *at = text; (at = std::search(at, end, key, key + sizeof key - 1)) != end;) {
        at += sizeof key - 1;
        const std::size_t sign = end - at >= 2 && at[0] == '=' && at[1] == '"' ? 2 : end - at >= 1 && at[0] == '>' ? 1 : 0;
        if (sign != 0 && std::size_t(end - at) > sign && at[sign] >= '0' && at[sign] <= '9') return at[sign] - '0';
    }
    return 0;
}

int orientation_of(const jpeg_decompress_struct &info) {
    static const char kExif[] = "Exif\0", kXmp[] = "http://ns.adobe.com/xap/1.0/";  // both with their final zero
    int from_xmp = 0;
    for (const jpeg_marker_struct *marker = info.marker_list; marker != nullptr; marker = marker->next) {
        const auto *data = marker->data;
        const std::size_t size = marker->data_length;
        if (size > sizeof kExif && std::memcmp(data, kExif, sizeof kExif) == 0) {
            if (const int found = exif_orientation(data + sizeof kExif, size - sizeof kExif)) return found;
        } else if (size > sizeof kXmp && std::memcmp(data, kXmp, sizeof kXmp) == 0) {
            from_xmp = xmp_orientation(reinterpret_cast<const char *>(data) + sizeof kXmp, size - sizeof kXmp);
        }
    }
    return from_xmp;
}

/// Everything that libjpeg may leave by longjmp, so nothing here has a destructor.
struct Decoder {
    jpeg_decompress_struct info;
    ErrorManager errors;
    jpeg_source_mgr source;
    jpeg_progress_mgr progress;
    bool created;

    /// Read the header. False: see `errors`.
    bool open(const std::uint8_t *data, std::size_t size_bytes) {
        created = false;
        std::memset(&info, 0, sizeof info);
        info.err = jpeg_std_error(&errors.base);
        errors.base.error_exit = on_error;
        errors.base.emit_message = on_message;
        errors.truncated = errors.too_many_scans = false;
        errors.message[0] = '\0';
        errors.base.msg_code = 0;
        if (setjmp(errors.escape) != 0) return false;
        jpeg_create_decompress(&info);
        created = true;
        info.mem->max_memory_to_use = kMaxDecoderBytes;
        source.next_input_byte = data;
        source.bytes_in_buffer = size_bytes;
        source.init_source = no_operation;
        source.fill_input_buffer = on_end_of_data;
        source.skip_input_data = skip;
        source.resync_to_restart = jpeg_resync_to_restart;
        source.term_source = no_operation;
        info.src = &source;
        progress.progress_monitor = on_progress;
        info.progress = &progress;
        jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
        jpeg_read_header(&info, TRUE);
        return true;
    }

    /// Decode into rows of 3 bytes a pixel; grey is repeated.
    bool read(std::uint8_t *pixels) {
        if (setjmp(errors.escape) != 0) return false;
        info.out_color_space = info.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
        jpeg_start_decompress(&info);
        const std::size_t stride = std::size_t(info.output_width) * 3;
        while (info.output_scanline < info.output_height) {
            std::uint8_t *const row = pixels + info.output_scanline * stride;
            JSAMPROW rows[1] = {row};
            if (jpeg_read_scanlines(&info, rows, 1) == 1 && info.output_components == 1) {
                for (std::size_t x = info.output_width; x-- > 0;) row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = row[x];
            }
        }
        jpeg_finish_decompress(&info);
        return true;
    }

    void close() {
        if (created) jpeg_destroy_decompress(&info);
    }
};

[[noreturn]] void fail(const Decoder &decoder, const std::string &name) {
    if (decoder.errors.truncated) {
        throw KitError(EAK_ERR_IMAGE, name + " is truncated: the JPEG data ends early. Replace it.");
    }
    if (decoder.errors.too_many_scans) {
        throw KitError(EAK_ERR_IMAGE, name + " has more than " + std::to_string(kMaxScans) + " scans. Save it again.");
    }
    if (decoder.errors.base.msg_code == JERR_OUT_OF_MEMORY) throw std::bad_alloc();
    throw KitError(EAK_ERR_IMAGE, name + " cannot be decoded: " + decoder.errors.message + ". Replace it.");
}

}  // namespace

Image decode_jpeg(const std::uint8_t *data, std::size_t size_bytes, const std::string &name, int &orientation) {
    Decoder decoder;
    struct Closer {
        Decoder &decoder;
        ~Closer() { decoder.close(); }
    } closer{decoder};
    if (!decoder.open(data, size_bytes)) fail(decoder, name);
    const auto &info = decoder.info;
    check_image_size(info.image_width, info.image_height, name);
    if (info.num_components != 1 && info.num_components != 3) {
        throw KitError(EAK_ERR_IMAGE, name + " has " + std::to_string(info.num_components) +
                                          " colour channels (CMYK has 4). Convert it to RGB.");
    }
    orientation = orientation_of(info);
    Image image{int(info.image_width), int(info.image_height), {}};
    image.pixels.resize(std::size_t(image.width) * std::size_t(image.height) * 3);
    if (!decoder.read(image.pixels.data())) fail(decoder, name);
    return image;
}

}  // namespace eak

#endif
