package qmp_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"

	"github.com/coloctl/coloctl/qmp"
)

// BenchmarkRoundTrip compares this client with go-qemu's SocketMonitor on one
// QEMU: query-status with its reply decoded. QEMU reads its socket byte by byte,
// so that the id that go-qemu doesn't send costs about 30 µs; with-id is go-qemu
// sending as many bytes as we do.
func BenchmarkRoundTrip(b *testing.B) {
	v := startQEMU(b, "-M", "none")
	ours := v.dial(b, v.path, nil)
	v.dial(b, v.second, nil).Close() // wait until it listens
	compare(b, ours, v.second)
}

// BenchmarkClient is the same against a peer that answers at once, so that only
// the clients' own cost is left.
func BenchmarkClient(b *testing.B) {
	path := instantPeer(b)
	ours, err := qmp.Dial(b.Context(), path, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer ours.Close()
	compare(b, ours, path)
}

func compare(b *testing.B, ours *qmp.Client, path string) {
	theirs, err := goqemu.NewSocketMonitor("unix", path, time.Second)
	if err != nil {
		b.Fatal(err)
	}
	if err := theirs.Connect(); err != nil {
		b.Fatal(err)
	}
	defer theirs.Disconnect()
	adapter := qmp.AsMonitor(ours, 10*time.Second)

	const plain, withID = `{"execute":"query-status"}` + "\n", `{"execute":"query-status","id":12345}` + "\n"
	b.Run("client=ours", func(b *testing.B) {
		perSecond(b, func() error {
			_, err := ours.QueryStatus(b.Context())
			return err
		})
	})
	b.Run("client=ours-as-monitor", func(b *testing.B) {
		perSecond(b, func() error { return runMonitor(adapter, plain) })
	})
	b.Run("client=go-qemu", func(b *testing.B) {
		perSecond(b, func() error { return runMonitor(theirs, plain) })
	})
	b.Run("client=go-qemu-same-bytes", func(b *testing.B) {
		perSecond(b, func() error {
			// Its reply can't be decoded by go-qemu, which wants the id
			// to be a string; the round trip is made all the same.
			if err := runMonitor(theirs, withID); err != nil && !isUnmarshalType(err) {
				return err
			}
			return nil
		})
	})
}

func isUnmarshalType(err error) bool {
	var wrong *json.UnmarshalTypeError
	return errors.As(err, &wrong)
}

func runMonitor(mon goqemu.Monitor, command string) error {
	raw, err := mon.Run([]byte(command))
	if err != nil {
		return err
	}
	var reply struct {
		Return qmp.Status `json:"return"`
	}
	return json.Unmarshal(raw, &reply)
}

func perSecond(b *testing.B, roundTrip func() error) {
	b.ReportAllocs()
	for b.Loop() {
		if err := roundTrip(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "roundtrips/s")
}

// instantPeer listens on a unix socket and answers every command as QEMU
// answers query-status. It allocates nothing per command, so what is measured
// are the clients' allocations.
func instantPeer(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answerAll(conn)
		}
	}()
	b.Cleanup(func() {
		l.Close()
		<-served
	})
	return path
}

func answerAll(conn net.Conn) {
	defer conn.Close()
	io.WriteString(conn, greeting)
	r := bufio.NewReader(conn)
	var out []byte
	for {
		command, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		out = append(out[:0], `{"return": {"status": "prelaunch", "running": false}`...)
		if _, id, ok := bytes.Cut(command, []byte(`"id":`)); ok {
			id = id[:bytes.IndexAny(id, ",}")]
			out = append(append(out, `, "id": `...), id...)
		}
		if _, err := conn.Write(append(out, "}\r\n"...)); err != nil {
			return
		}
	}
}
