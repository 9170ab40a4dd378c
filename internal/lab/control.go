package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// controlName is the socket on which a lab answers, in its folder. It speaks HTTP.
const controlName = "control.sock"

// UpLimit is how long one step of a lab that shall stay may take: far more than any takes on a slow machine.
const UpLimit = 10 * time.Minute

// stillInterval is how often a step that isn't done says so.
const stillInterval = 20 * time.Second

// Control is the socket of a lab that stays: it answers from before the lab is there until after its end, and is how somebody wants it down.
// Its methods are safe for concurrent use.
type Control struct {
	server *http.Server
	served chan error
	cancel context.CancelCauseFunc
	say    func(format string, args ...any)

	mu    sync.Mutex
	doing string
	since time.Time
	lab   *Lab
}

// OpenControl listens on the socket, at [Path] of "control.sock" in a lab's worker. The context that is returned ends with [ErrInterrupted]
// when somebody wants the lab down. say is told what is done. The caller must Close it.
func OpenControl(ctx context.Context, path string, say func(format string, args ...any)) (*Control, context.Context, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c := &Control{served: make(chan error, 1), cancel: cancel, say: say, since: time.Now(), doing: "its process begins"}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.status(r.Context())) // who has gone needs no answer
	})
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		cancel(ErrInterrupted)
	})
	c.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { c.served <- c.server.Serve(ln) }()
	return c, ctx, nil
}

// ControlPath is where the worker's socket is, inside.
func ControlPath() string { return Path(controlName) }

func (c *Control) status(ctx context.Context) LabStatus {
	c.mu.Lock()
	l, starting := c.lab, fmt.Sprintf("%s (for %v)", c.doing, time.Since(c.since).Round(time.Second))
	c.mu.Unlock()
	if l == nil {
		return LabStatus{Folder: FolderOutside(), Starting: starting}
	}
	return l.status(ctx)
}

// Step does a part of the start, which must be done within the limit, and says now and then that it still does.
func (c *Control) Step(ctx context.Context, what string, limit time.Duration, do func(context.Context) error) error {
	c.mu.Lock()
	c.doing, c.since = what, time.Now()
	c.mu.Unlock()
	c.say("%s", what)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %v", limit))
	defer cancel()
	done := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() {
		tick := time.NewTicker(stillInterval)
		defer tick.Stop()
		for begun := time.Now(); ; {
			select {
			case now := <-tick.C:
				c.say("still: %s (%v of at most %v)", what, now.Sub(begun).Round(time.Second), limit)
			case <-done:
				return
			}
		}
	})
	err := do(ctx)
	close(done)
	told.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Up makes the socket answer with the lab's state.
func (c *Control) Up(l *Lab) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lab = l
}

// Wait returns when ctx, which is that of OpenControl, has ended, or the socket has failed.
func (c *Control) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.served:
		c.served <- err // for Close
		return err
	}
}

// Close ends the socket and the context.
func (c *Control) Close() error {
	c.cancel(nil)
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := c.server.Shutdown(last)
	if served := <-c.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
