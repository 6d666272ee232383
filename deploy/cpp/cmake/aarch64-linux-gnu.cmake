# Build for 64-bit ARM on another machine: Debian's and Ubuntu's crossbuild-essential-arm64. With qemu-user-static the
# tests run, too. See "Build for ARM on another machine" in README.md.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(EAK_SYSROOT /usr/aarch64-linux-gnu CACHE PATH "Where the libraries for ARM are")
list(APPEND CMAKE_FIND_ROOT_PATH ${EAK_SYSROOT})
# libjpeg or libpng of this machine would not link.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
# OpenVINO's wheel for ARM is unpacked anywhere; it is named by OpenVINO_DIR.
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)

# A processor of 2019 and later (Raspberry Pi 5 and the like); qemu's default has instructions that few boards have.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static;-cpu;neoverse-n1;-L;${EAK_SYSROOT})
