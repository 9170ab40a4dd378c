package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
)

var plainDial = new(net.Dialer).DialContext

// guestHTTP serves the guest's web service, each request through a gate that the test may put in the way.
func guestHTTP(t *testing.T, gate func(*http.Request) bool) string {
	t.Helper()
	counter, err := service.OpenCounter(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	h := (&service.HTTP{BootID: "boot-1", Started: time.Now(), Counter: counter}).Handler()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gate == nil || gate(r) {
			h.ServeHTTP(w, r)
		} else {
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(func() { s.Close(); counter.Close() })
	return s.Listener.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// While the guest hangs, the probe goes on to send, and the hang is the blackout.
func TestHTTPProbeMeasuresAHang(t *testing.T) {
	var hung, during atomic.Int32
	var until atomic.Int64
	addr := guestHTTP(t, func(*http.Request) bool {
		if d := time.Until(time.Unix(0, until.Load())); d > 0 {
			during.Add(1)
			hung.Store(1)
			time.Sleep(d)
		}
		return true
	})
	p := NewHTTPProbe(plainDial, addr)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	start := time.Now()
	if err := p.Await(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	event := time.Now()
	until.Store(event.Add(250 * time.Millisecond).UnixNano())
	if err := p.Await(t.Context(), event.Add(260*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	cancel()
	wg.Wait()
	got, ok := p.Blackout(event, time.Now())
	if !ok || got < 240*time.Millisecond || got > time.Second {
		t.Errorf("blackout %v, %v; want about 250ms", got, ok)
	}
	if during.Load() < 10 {
		t.Errorf("only %d requests were sent while earlier ones hung", during.Load())
	}
	if p.BootIDs() != 1 {
		t.Errorf("%d boots", p.BootIDs())
	}
}

// Answers that get lost on the way back make the probe ask again, and the guest counts each id once.
func TestCounterProbeRetriesUnderItsID(t *testing.T) {
	counter, err := service.OpenCounter(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	h := (&service.HTTP{BootID: "boot-1", Started: time.Now(), Counter: counter}).Handler()
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if r.URL.Path == "/counter" && n.Add(1)%3 == 0 {
			panic(http.ErrAbortHandler) // counted, but the answer is lost
		}
		_, _ = io.Copy(w, rec.Body)
	}))
	defer s.Close()
	p := NewCounterProbe(plainDial, s.Listener.Addr().String(), "w")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		until(t, "30 writes", func() bool { return p.Acked() >= 30 })
	}()
	p.Run(ctx)
	got, err := p.Verify(t.Context())
	if err != nil || got.Acked < 30 || got.Lost != 0 || got.Duplicated != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTally(t *testing.T) {
	acked := []service.Count{{N: 1, ID: "a"}, {N: 2, ID: "b"}, {N: 3, ID: "c"}}
	tests := []struct {
		name, log        string
		lost, duplicated int
	}{
		{"all there", "1 a\n2 b\n3 c\n", 0, 0},
		{"one more, never acknowledged", "1 a\n2 b\n3 c\n4 d\n", 0, 0},
		{"one lost", "1 a\n3 c\n", 1, 0},
		{"one counted twice", "1 a\n2 b\n3 c\n4 b\n", 0, 1},
		{"lost and counted again later", "1 a\n2 c\n3 b\n", 2, 0},
		{"all gone", "", 3, 0},
	}
	for _, tt := range tests {
		got, err := tally(acked, []byte(tt.log))
		if err != nil || got != (Tally{3, tt.lost, tt.duplicated}) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
	if _, err := tally(acked, []byte("nonsense\n")); err == nil {
		t.Error("a log that can't be read was accepted")
	}
}

func TestEchoProbe(t *testing.T) {
	l := listen(t)
	serverCtx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- service.ServeEcho(serverCtx, l) }()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	var probes []*EchoProbe
	for _, idle := range []bool{false, true} {
		p, err := NewEchoProbe(ctx, plainDial, "echo", l.Addr().String(), idle)
		if err != nil {
			t.Fatal(err)
		}
		probes = append(probes, p)
		wg.Go(func() { p.Run(ctx, t.Context()) })
	}
	until(t, "20 answers", func() bool { return len(probes[0].Points()) >= 20 })
	cancel()
	wg.Wait()
	for _, p := range probes {
		if err := p.Survived(); err != nil {
			t.Error(err)
		}
	}
	if n := len(probes[1].Points()); n != 1 {
		t.Errorf("the idle connection was used %d times, want once, at the end", n)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A connection that the guest closed, changed or forgot has not survived, even if nothing is waiting for an answer.
func TestEchoProbeSeesABrokenConnection(t *testing.T) {
	servers := map[string]func(net.Conn){
		"closed when idle": func(c net.Conn) { c.Close() },
		"wrong answer":     func(c net.Conn) { fmt.Fprint(c, "1 1 other\n"); io.Copy(io.Discard, c) },
		"repeated answer":  func(c net.Conn) { fmt.Fprint(c, "1 1 echo\n1 1 echo\n"); io.Copy(io.Discard, c) },
		"silent":           func(c net.Conn) { io.Copy(io.Discard, c) },
	}
	for name, serve := range servers {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err == nil {
					serve(c)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			p, err := NewEchoProbe(ctx, plainDial, "echo", l.Addr().String(), name == "closed when idle")
			if err != nil {
				t.Fatal(err)
			}
			final, cancelFinal := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancelFinal()
			p.Run(ctx, final)
			if err := p.Survived(); err == nil {
				t.Error("it is said to have survived")
			}
		})
	}
}

// A guest that is held for longer than the client's buffers last is no broken connection: the client waits with what it wants to send.
func TestEchoProbeWaitsForAGuestThatIsHeld(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, server := net.Pipe() // no buffer at all
	dial := func(context.Context, string, string) (net.Conn, error) { return client, nil }
	p, err := NewEchoProbe(ctx, dial, "echo", "", false)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer server.Close()
		select {
		case <-time.After(1500 * time.Millisecond):
		case <-ctx.Done():
		}
		r := bufio.NewReader(server)
		for n := 1; ; n++ {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(server, "%d %s", n, line); err != nil {
				return
			}
		}
	})
	final, giveUp := context.WithTimeout(t.Context(), 30*time.Second)
	defer giveUp()
	wg.Go(func() { p.Run(ctx, final) })
	for len(p.Points()) == 0 && p.Survived() == nil && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	if p.Survived() != nil {
		giveUp()
	}
	cancel()
	wg.Wait()
	if err := p.Survived(); err != nil {
		t.Error(err)
	}
}

func TestUDPProbe(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serverCtx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- service.ServeEchoUDP(serverCtx, pc) }()
	ctx, cancel := context.WithCancel(t.Context())
	p, err := NewUDPProbe(ctx, plainDial, pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer cancel()
		until(t, "10 answers", func() bool { return len(p.Points()) >= 10 })
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		event := time.Now()
		time.Sleep(50 * time.Millisecond)
		if got, ok := p.Blackout(event, time.Now()); !ok || got < 50*time.Millisecond {
			t.Errorf("a guest that doesn't answer is black for %v, %v", got, ok)
		}
	}()
	p.Run(ctx)
}

// damage changes one byte of what is read after so many bytes.
type damage struct {
	net.Conn
	after int
}

func (d *damage) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if d.after >= 0 && d.after < n {
		b[d.after] ^= 1
	}
	d.after -= n
	return n, err
}

func TestDownload(t *testing.T) {
	l := listen(t)
	serverCtx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- service.ServeFTP(serverCtx, l, 0, 0) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	d := NewDownload(plainDial, l.Addr().String(), 20<<20, 7)
	if err := d.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if d.Got() != 20<<20 || len(d.Points()) == 0 {
		t.Errorf("got %d bytes, %d points", d.Got(), len(d.Points()))
	}

	conns := 0
	d = NewDownload(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := plainDial(ctx, network, addr)
		if conns++; conns == 2 && err == nil {
			c = &damage{c, 1 << 20}
		}
		return c, err
	}, l.Addr().String(), 2<<20, 0)
	if err := d.Run(t.Context()); !errors.Is(err, ErrChecksum) {
		t.Errorf("a changed byte: got %v", err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	d = NewDownload(plainDial, l.Addr().String(), 1<<40, 0)
	go func() {
		until(t, "some bytes", func() bool { return d.Got() > 0 })
		cancel(ErrInterrupted)
	}()
	if err := d.Run(ctx); !errors.Is(err, ErrInterrupted) {
		t.Errorf("an interrupted download: got %v", err)
	}
}

func TestGetSaysWhatCameBack(t *testing.T) {
	addr := guestHTTP(t, func(r *http.Request) bool { return r.URL.Path != "/cut" })
	c := newHTTPClient(plainDial, time.Second)
	defer c.CloseIdleConnections()
	if _, err := get(t.Context(), c, "http://"+addr+"/nowhere"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
	if _, err := get(t.Context(), c, "http://"+addr+"/cut"); err == nil {
		t.Error("a cut connection is no error")
	}
	body, err := get(t.Context(), c, "http://"+addr+"/id")
	if err != nil || !bytes.Contains(body, []byte("boot-1")) {
		t.Errorf("%s, %v", body, err)
	}
}

func TestStreamProbe(t *testing.T) {
	addr := guestHTTP(t, nil)
	for name, tt := range map[string]struct {
		damage int
		want   error
	}{"good": {-1, nil}, "a changed byte": {200 << 10, ErrChecksum}} {
		t.Run(name, func(t *testing.T) {
			p := NewStreamProbe(func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := plainDial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &damage{c, tt.damage}, nil
			}, addr, 10<<20)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			p.Run(ctx, t.Context())
			if err := p.Survived(); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if n := len(p.Points()); tt.want == nil && (n < 20 || n > 200) {
				t.Errorf("%d points of 16 kB in 200 ms: want about 128", n)
			}
		})
	}
}

// A stream from which nothing comes at the end has not survived.
func TestStreamProbeSeesSilence(t *testing.T) {
	addr := guestHTTP(t, nil)
	stall := make(chan struct{})
	p := NewStreamProbe(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := plainDial(ctx, network, addr)
		return &stalling{Conn: c, stall: stall}, err
	}, addr, 10<<20)
	ctx, cancel := context.WithCancel(t.Context())
	final, giveUp := context.WithCancelCause(t.Context())
	go func() {
		until(t, "some bytes", func() bool { return len(p.Points()) > 5 })
		close(stall)
		cancel()
		time.Sleep(50 * time.Millisecond)
		giveUp(errNoLastAnswer)
	}()
	p.Run(ctx, final)
	if err := p.Survived(); !errors.Is(err, errNoLastAnswer) {
		t.Errorf("got %v", err)
	}
}

// stalling is a connection from which nothing comes any more once stall is closed.
type stalling struct {
	net.Conn
	stall chan struct{}
}

func (s *stalling) Read(b []byte) (int, error) {
	select {
	case <-s.stall:
		b = make([]byte, 1)
		for {
			if _, err := s.Conn.Read(b); err != nil {
				return 0, err
			}
		}
	default:
		return s.Conn.Read(b)
	}
}
