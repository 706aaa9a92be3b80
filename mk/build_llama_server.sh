#!/usr/bin/env bash
# Builds llama.cpp's server from the source that the package llama-cpp-python carries: build_llama_server.sh FOLDER.
# About ten minutes on two cores; needs a C++ compiler. The server is FOLDER/build/bin/llama-server.
set -euo pipefail
folder=$1
version=0.3.36
mkdir -p "$folder"
cd "$folder"
[ -x build/bin/llama-server ] && exit 0
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cmake ninja scikit-build-core
venv/bin/pip download --quiet --no-deps --no-binary :all: --no-build-isolation "llama-cpp-python==$version" ||
  venv/bin/pip download --quiet --no-deps --no-binary :all: "llama-cpp-python==$version"
tar xzf "llama_cpp_python-$version.tar.gz"
export PATH="$PWD/venv/bin:$PATH"
cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \
  -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DBUILD_SHARED_LIBS=OFF \
  >cmake.log
ninja -C build llama-server >ninja.log
