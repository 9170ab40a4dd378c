package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

// Identity is the answer to /id.
type Identity struct {
	BootID string `json:"boot_id"`
	// Uptime is in whole seconds: a finer value would differ between the
	// two copies of the VM in every reply.
	Uptime int64 `json:"uptime_s"`
}

// MaxCPU bounds one /cpu request.
const MaxCPU = 60 * time.Second

// HTTP is the guest's web service.
//
//	GET  /id                      Identity
//	GET  /counter?id=ID           Count; also POST. ID names the request
//	GET  /log?after=N             acknowledged writes with a number above N (default 0), a line each: number, id
//	GET  /blob?size=N&seed=N      a blob, with byte ranges
//	GET  /cpu?ms=N                computes for that long, then answers
//	GET  /time                    the guest's clock, RFC 3339
//	POST /raw?offset=N&size=N&seed=N  writes a blob to the second disk and flushes it
//	POST /flush?size=N&times=N&seed=N  the same with each of so many small ones: FlushTimes
//	GET  /device?name=NAME        SHA-256 of all that a block device holds, in hexadecimal digits
//	POST /reboot, POST /poweroff  answers, then acts
type HTTP struct {
	BootID  string
	Started time.Time
	// Counter is nil in a guest without a disk: /counter and /log then answer 503.
	Counter *Counter
	// Raw is nil in a guest without a second disk: /raw and /flush then answer 503.
	Raw *RawDisk
	// Devices is the folder of block devices; empty: /device answers 503.
	Devices string
	// Reboot and PowerOff are called after the answer was sent. Nil: 501.
	Reboot, PowerOff func()
}

// Handler returns the service.
func (s *HTTP) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /id", s.id)
	mux.HandleFunc("GET /counter", s.counter)
	mux.HandleFunc("POST /counter", s.counter)
	mux.HandleFunc("GET /log", s.log)
	mux.HandleFunc("GET /blob", serveBlob)
	mux.HandleFunc("GET /cpu", burn)
	mux.HandleFunc("GET /time", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, time.Now().UTC().Format(time.RFC3339Nano))
	})
	mux.HandleFunc("GET /device", s.device)
	mux.HandleFunc("POST /raw", s.raw)
	mux.HandleFunc("POST /flush", s.flush)
	mux.HandleFunc("POST /reboot", power(s.Reboot))
	mux.HandleFunc("POST /poweroff", power(s.PowerOff))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil // nil, not absent: net/http would add its own
		mux.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
}

func (s *HTTP) id(w http.ResponseWriter, _ *http.Request) {
	reply(w, Identity{s.BootID, int64(time.Since(s.Started) / time.Second)})
}

func (s *HTTP) counter(w http.ResponseWriter, r *http.Request) {
	if s.Counter == nil {
		http.Error(w, "this guest has no disk", http.StatusServiceUnavailable)
		return
	}
	count, err := s.Counter.Add(r.FormValue("id"))
	switch {
	case errors.Is(err, ErrRequestID):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		reply(w, count)
	}
}

func (s *HTTP) log(w http.ResponseWriter, r *http.Request) {
	if s.Counter == nil {
		http.Error(w, "this guest has no disk", http.StatusServiceUnavailable)
		return
	}
	after, err := number(r, "after", 0)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, c := range s.Counter.Counts(after) {
		fmt.Fprintf(w, "%d %s\n", c.N, c.ID)
	}
}

func serveBlob(w http.ResponseWriter, r *http.Request) {
	size, err := number(r, "size", -1)
	if err == nil && size < 0 {
		err = errors.New("size is missing")
	}
	seed, err2 := number(r, "seed", 0)
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, blob.NewReader(size, uint64(seed)))
}

func burn(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms", 100)
	if err == nil && ms > int64(MaxCPU/time.Millisecond) {
		err = fmt.Errorf("ms must be at most %d", MaxCPU/time.Millisecond)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	end := time.Now().Add(time.Duration(ms) * time.Millisecond)
	x := uint64(1)
	for r.Context().Err() == nil && time.Now().Before(end) {
		for range 10000 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
	}
	if x == 0 { // never so; uses x, else the loop may be dropped by the compiler
		return
	}
	fmt.Fprintln(w, ms)
}

func power(act func()) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if act == nil {
			http.Error(w, "not available", http.StatusNotImplemented)
			return
		}
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusAccepted)
		_ = http.NewResponseController(w).Flush()
		act()
	}
}

// number reads a decimal parameter that is not negative.
func number(r *http.Request, name string, missing int64) (int64, error) {
	text := r.FormValue(name)
	if text == "" {
		return missing, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s must be a number that is not negative", name)
	}
	return n, nil
}
