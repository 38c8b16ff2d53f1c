// Streams, events and graphs: when an operation runs.
//
// Normally an operation runs in the calling thread, at once. With MILLSTREAM_EMULATOR_ASYNC=1 each
// stream has a thread that runs its operations in order, later, as a GPU does: a host that reuses
// or reads memory too early sees it. While a stream is captured nothing runs; the graph gets all.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace emulator {

using Operation = std::function<void()>;
using Result = int;  // CUresult

struct Graph {
    std::vector<Operation> operations;
};

enum class CaptureMode { Global = 0, ThreadLocal = 1, Relaxed = 2 };

struct Capture {
    CaptureMode mode;
    std::thread::id thread;
    bool valid, ended;
    Graph graph;
};

class Stream {
  public:
    Stream();
    ~Stream();
    Stream(const Stream&) = delete;

    Result enqueue(Operation operation);
    bool idle();
    void wait();

    // Set while the stream is captured. Streams that joined through an event share it.
    std::shared_ptr<Capture> capture;

  private:
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Operation> queue;
    bool running = false, closing = false;
    std::thread worker;

    void work();
};

struct Event {
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t num_recorded = 0, num_completed = 0;
    std::chrono::steady_clock::time_point time;
    // Set when the last record was in a capture.
    std::shared_ptr<Capture> capture;
};

bool asynchronous();
// The stream of a null handle.
Stream& default_stream();
void wait_for_all_streams();

// Operations under way keep the event, which its owner may destroy at once.
Result record(std::shared_ptr<Event> event, Stream& stream);
Result wait_for(std::shared_ptr<Event> event, Stream& stream);

Result begin_capture(Stream& stream, CaptureMode mode);
Result end_capture(Stream& stream, Graph** graph);
// Breaks the captures beside which a call like an allocation is not allowed; an error if there are.
Result check_not_captured();

}  // namespace emulator
