package service

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jlaffaye/ftp"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

func get(t *testing.T, s *HTTP, method, url string, header ...string) *http.Response {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), method, url, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	s.Handler().ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHTTP(t *testing.T) {
	s := &HTTP{BootID: "b", Started: time.Now().Add(-2500 * time.Millisecond), Counter: openCounter(t, filepath.Join(t.TempDir(), "log"))}
	var id Identity
	if err := json.Unmarshal([]byte(body(t, get(t, s, "GET", "/id"))), &id); err != nil || id != (Identity{"b", 2}) {
		t.Errorf("id %+v, %v", id, err)
	}
	for _, c := range []struct {
		method, url string
		status      int
		body        string
	}{
		{"GET", "/counter?id=x", 200, "{\"n\":1,\"id\":\"x\"}\n"},
		{"POST", "/counter?id=y", 200, "{\"n\":2,\"id\":\"y\"}\n"},
		{"POST", "/counter?id=x", 200, "{\"n\":1,\"id\":\"x\"}\n"},
		{"GET", "/counter", 400, ErrRequestID.Error() + "\n"},
		{"GET", "/log", 200, "1 x\n2 y\n"},
		{"GET", "/log?after=1", 200, "2 y\n"},
		{"GET", "/log?after=-1", 400, "after must be a number that is not negative\n"},
		{"GET", "/blob", 400, "size is missing\n"},
		{"GET", "/blob?size=x", 400, "size must be a number that is not negative\n"},
		{"GET", "/cpu?ms=1", 200, "1\n"},
		{"GET", "/cpu?ms=60001", 400, "ms must be at most 60000\n"},
		{"POST", "/reboot", 501, "not available\n"},
		{"GET", "/reboot", 405, "Method Not Allowed\n"},
		{"GET", "/x", 404, "404 page not found\n"},
	} {
		r := get(t, s, c.method, c.url)
		if got := body(t, r); r.StatusCode != c.status || got != c.body {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.url, r.StatusCode, got, c.status, c.body)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(body(t, get(t, s, "GET", "/time")))); err != nil {
		t.Error(err)
	}
	s.Counter = nil
	for _, url := range []string{"/counter?id=x", "/log"} {
		if r := get(t, s, "GET", url); r.StatusCode != 503 {
			t.Errorf("%s without a disk: %d", url, r.StatusCode)
		}
	}
	called := ""
	s.Reboot, s.PowerOff = func() { called += "r" }, func() { called += "p" }
	if r := get(t, s, "POST", "/reboot"); r.StatusCode != 202 {
		t.Errorf("reboot: %d", r.StatusCode)
	}
	if r := get(t, s, "POST", "/poweroff"); r.StatusCode != 202 || called != "rp" {
		t.Errorf("poweroff: %d, called %q", r.StatusCode, called)
	}
}

func TestHTTPBlobRanges(t *testing.T) {
	const size = 200_000
	whole, err := io.ReadAll(blob.NewReader(size, 5))
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("/blob?size=%d&seed=5", size)
	if got := body(t, get(t, &HTTP{}, "GET", url)); got != string(whole) {
		t.Error("whole blob differs")
	}
	r := get(t, &HTTP{}, "GET", url, "Range", "bytes=70000-70009")
	if got := body(t, r); r.StatusCode != 206 || got != string(whole[70000:70010]) {
		t.Errorf("range: %d, %d bytes", r.StatusCode, len(got))
	}
	r = get(t, &HTTP{}, "GET", url, "Range", "bytes=-5")
	if got := body(t, r); r.StatusCode != 206 || got != string(whole[size-5:]) {
		t.Errorf("range from the end: %d, %q", r.StatusCode, got)
	}
}

// TestHTTPRepliesAreEqual: two copies of the guest give the same bytes, so no
// reply may tell the time.
func TestHTTPRepliesAreEqual(t *testing.T) {
	started := time.Now()
	var replies [2]string
	for i := range replies {
		server := httptest.NewServer((&HTTP{BootID: "b", Started: started}).Handler())
		for _, path := range []string{"/id", "/blob?size=10", "/x"} {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", path)
			b, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(b), "Date:") {
				t.Errorf("%s has a date:\n%s", path, b)
			}
			replies[i] += string(b)
		}
		server.Close()
	}
	if replies[0] != replies[1] {
		t.Errorf("replies differ:\n%s\n%s", replies[0], replies[1])
	}
}

// serve runs a service until the test ends.
func serve(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFTP(t *testing.T) {
	l := listen(t)
	serve(t, func(ctx context.Context) error { return ServeFTP(ctx, l, 0, 0) })
	c, err := ftp.Dial(l.Addr().String(), ftp.DialWithTimeout(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Quit() })
	if err := c.Login("anonymous", "x"); err != nil {
		t.Fatal(err)
	}
	const size = 300_000
	for _, from := range []int64{0, 1, 65536, size - 1, size} {
		r, err := c.RetrFrom(BlobPath(size, 9), uint64(from))
		if err != nil {
			t.Fatal(err)
		}
		got := sha256.New()
		n, err := io.Copy(got, r)
		if err := errors.Join(err, r.Close()); err != nil || n != size-from {
			t.Fatalf("from %d: %d bytes, %v", from, n, err)
		}
		rest := blob.NewReader(size, 9)
		if _, err := rest.Seek(from, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		want := sha256.New()
		if _, err := rest.WriteTo(want); err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got.Sum(nil)) != hex.EncodeToString(want.Sum(nil)) {
			t.Errorf("from %d: wrong bytes", from)
		}
	}
	if n, err := c.FileSize(BlobPath(734003200, 0)); err != nil || n != 734003200 {
		t.Errorf("size %d, %v", n, err)
	}
	entries, err := c.List("/")
	if err != nil || len(entries) != 3 || entries[0].Name != "blob-1048576.bin" || entries[0].Size != 1<<20 {
		t.Errorf("list %v, %v", entries, err)
	}
	if _, err := c.Retr("/etc/passwd"); err == nil {
		t.Error("a file that is no blob was served")
	}
	if err := c.Stor("/blob-5.bin", strings.NewReader("12345")); err == nil {
		t.Error("a file was written")
	}
	if err := c.MakeDir("/d"); err == nil {
		t.Error("a folder was made")
	}
	if err := c.Delete("/blob-5.bin"); err == nil {
		t.Error("a file was deleted")
	}
}

func TestEcho(t *testing.T) {
	l := listen(t)
	serve(t, func(ctx context.Context) error { return ServeEcho(ctx, l) })
	for range 2 { // numbers begin anew with a connection
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		fmt.Fprint(conn, "a\n\nb c\n")
		for _, want := range []string{"1 a\n", "2 \n", "3 b c\n"} {
			if got, err := r.ReadString('\n'); err != nil || got != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go fmt.Fprint(conn, strings.Repeat("x", MaxEchoLine+1)) // ends when conn is closed
	if b, _ := io.ReadAll(conn); len(b) != 0 {
		t.Errorf("a line that is too long was answered with %d bytes", len(b))
	}
}

func TestEchoUDP(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error { return ServeEchoUDP(ctx, pc) })
	conn, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 100)
	for i := range 3 {
		fmt.Fprint(conn, "datagram ", i)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != fmt.Sprint("datagram ", i) {
			t.Errorf("%q, %v", buf[:n], err)
		}
	}
}
