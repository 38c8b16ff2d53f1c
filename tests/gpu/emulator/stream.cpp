#include "stream.h"

#include <cstdlib>
#include <cstring>
#include <set>

#include "result.h"

namespace emulator {

std::atomic<int> lasting_failure;

namespace {

using Lock = std::unique_lock<std::mutex>;

// How long a stream's thread rests before it begins: a host that does not wait is then early.
constexpr auto HEAD_START = std::chrono::microseconds(100);

std::mutex registry_mutex;
// Never destroyed: see memory.cpp.
auto& streams = *new std::set<Stream*>;
auto& captures = *new std::set<std::shared_ptr<Capture>>;

void run(const Operation& operation) {
    if (!lasting_failure) operation();
}

}  // namespace

bool asynchronous() {
    static const bool async = [] {
        const char* text = getenv("MILLSTREAM_EMULATOR_ASYNC");
        return text && strcmp(text, "1") == 0;
    }();
    return async;
}

Stream::Stream() {
    Lock lock(registry_mutex);
    streams.insert(this);
    if (asynchronous()) worker = std::thread([this] { work(); });
}

Stream::~Stream() {
    {
        Lock lock(registry_mutex);
        streams.erase(this);
    }
    {
        Lock lock(mutex);
        closing = true;
    }
    changed.notify_all();
    if (worker.joinable()) worker.join();
}

Result Stream::enqueue(Operation operation) {
    if (capture) {
        if (!capture->valid) return STREAM_CAPTURE_INVALIDATED;
        capture->graph.operations.push_back(std::move(operation));
        return SUCCESS;
    }
    if (!asynchronous()) {
        run(operation);
        return lasting_failure;
    }
    {
        Lock lock(mutex);
        queue.push_back(std::move(operation));
    }
    changed.notify_all();
    return SUCCESS;
}

bool Stream::idle() {
    Lock lock(mutex);
    return queue.empty() && !running;
}

void Stream::wait() {
    Lock lock(mutex);
    changed.wait(lock, [this] { return queue.empty() && !running; });
}

void Stream::work() {
    Lock lock(mutex);
    while (true) {
        changed.wait(lock, [this] { return !queue.empty() || closing; });
        if (queue.empty()) return;
        running = true;
        lock.unlock();
        std::this_thread::sleep_for(HEAD_START);
        lock.lock();
        while (!queue.empty()) {
            Operation operation = std::move(queue.front());
            queue.pop_front();
            lock.unlock();
            run(operation);
            operation = nullptr;
            lock.lock();
        }
        running = false;
        changed.notify_all();
    }
}

Stream& default_stream() {
    static Stream& stream = *new Stream;
    return stream;
}

void wait_for_all_streams() {
    std::vector<Stream*> all;
    {
        Lock lock(registry_mutex);
        all.assign(streams.begin(), streams.end());
    }
    for (Stream* stream : all) stream->wait();
}

Result record(std::shared_ptr<Event> event, Stream& stream) {
    Lock lock(event->mutex);
    event->capture = stream.capture;
    if (stream.capture) return stream.capture->valid ? SUCCESS : STREAM_CAPTURE_INVALIDATED;
    uint64_t number = ++event->num_recorded;
    lock.unlock();
    return stream.enqueue([event, number] {
        Lock lock(event->mutex);
        event->num_completed = number;
        event->time = std::chrono::steady_clock::now();
        event->changed.notify_all();
    });
}

Result wait_for(std::shared_ptr<Event> event, Stream& stream) {
    Lock lock(event->mutex);
    if (event->capture) {
        if (event->capture->ended) return CAPTURED_EVENT;
        if (stream.capture && stream.capture != event->capture) return STREAM_CAPTURE_MERGE;
        // The operations are captured in the order of the calls, and the graph runs them in it.
        stream.capture = event->capture;
        return SUCCESS;
    }
    uint64_t number = event->num_recorded;
    if (number == 0) return SUCCESS;
    if (stream.capture) {
        stream.capture->valid = false;
        return STREAM_CAPTURE_ISOLATION;
    }
    lock.unlock();
    return stream.enqueue([event, number] {
        Lock lock(event->mutex);
        while (event->num_completed < number && !lasting_failure) {
            event->changed.wait_for(lock, std::chrono::milliseconds(10));
        }
    });
}

Result begin_capture(Stream& stream, CaptureMode mode) {
    if (&stream == &default_stream()) return STREAM_CAPTURE_UNSUPPORTED;
    if (stream.capture) return ILLEGAL_STATE;
    stream.capture =
        std::make_shared<Capture>(Capture{mode, std::this_thread::get_id(), true, false, {}});
    Lock lock(registry_mutex);
    captures.insert(stream.capture);
    return SUCCESS;
}

Result end_capture(Stream& stream, Graph** graph) {
    *graph = nullptr;
    std::shared_ptr<Capture> capture = stream.capture;
    if (!capture) return ILLEGAL_STATE;
    if (capture->mode != CaptureMode::Relaxed && capture->thread != std::this_thread::get_id()) {
        return STREAM_CAPTURE_WRONG_THREAD;
    }
    {
        Lock lock(registry_mutex);
        captures.erase(capture);
        for (Stream* other : streams) {
            if (other->capture == capture) other->capture = nullptr;
        }
    }
    capture->ended = true;
    if (!capture->valid) return STREAM_CAPTURE_INVALIDATED;
    *graph = new Graph(std::move(capture->graph));
    return SUCCESS;
}

Result check_not_captured() {
    Lock lock(registry_mutex);
    bool captured = false;
    for (const auto& capture : captures) {
        bool here = capture->thread == std::this_thread::get_id();
        if (capture->mode == CaptureMode::Global ||
            (capture->mode == CaptureMode::ThreadLocal && here)) {
            capture->valid = false;
            captured = true;
        }
    }
    return captured ? STREAM_CAPTURE_UNSUPPORTED : SUCCESS;
}

}  // namespace emulator
