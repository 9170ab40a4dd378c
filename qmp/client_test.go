package qmp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

const greeting = `{"QMP":{"version":{"qemu":{"major":11,"minor":1,"micro":3},"package":""},"capabilities":["oob"]}}` + "\n"

// peer is the other end of a connection for what the fake QEMU never does. It
// runs script with the connection, then closes it.
func peer(t *testing.T, script func(r *bufio.Reader, w net.Conn)) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		script(bufio.NewReader(server), server)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return client
}

// shake does QEMU's part of the handshake, sending extra between greeting and
// reply.
func shake(r *bufio.Reader, w io.Writer, extra string) {
	io.WriteString(w, greeting)
	id := readID(r)
	fmt.Fprintf(w, `%s{"return":{},"id":%s}`+"\n", extra, id)
}

// readID reads a command and returns its id.
func readID(r *bufio.Reader) string {
	line, _ := r.ReadString('\n')
	_, rest, _ := strings.Cut(line, `"id":`)
	id, _, _ := strings.Cut(rest, "}")
	id, _, _ = strings.Cut(id, ",")
	return id
}

func TestHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := qmptest.New(t).Client(t.Context())
		if !c.OOB() {
			t.Error("oob was not negotiated")
		}
		if got := c.Greeting().Version.String(); got != "11.1.3" {
			t.Errorf("version %s", got)
		}
	})
}

func TestHandshakeTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := peer(t, func(r *bufio.Reader, _ net.Conn) { r.ReadByte() }) // QEMU serves another client
		start := time.Now()
		_, err := qmp.NewClient(t.Context(), conn, &qmp.Options{HandshakeTimeout: 3 * time.Second})
		if !errors.Is(err, qmp.ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestHandshakeRefused(t *testing.T) {
	for name, first := range map[string]string{
		"no JSON":    "SSH-2.0-OpenSSH_9.2\n",
		"other JSON": `{"hello":1}` + "\n",
		"nothing":    "",
		"half":       `{"QMP":`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := peer(t, func(_ *bufio.Reader, w net.Conn) { io.WriteString(w, first) })
				_, err := qmp.NewClient(t.Context(), conn, nil)
				if !errors.Is(err, qmp.ErrClosed) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// A QEMU that was busy with the command of the client before answers it on the
// connection of the next.
func TestReplyOfPreviousConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := peer(t, func(r *bufio.Reader, w net.Conn) {
			shake(r, w, `{"return":{"running":false},"id":1}`+"\n"+`{"return":{},"id":"x"}`+"\n")
			fmt.Fprintf(w, `{"return":{"running":true,"status":"running"},"id":%s}`+"\n", readID(r))
			r.ReadByte()
		})
		c, err := qmp.NewClient(t.Context(), conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if s, err := c.QueryStatus(t.Context()); err != nil || !s.Running {
			t.Errorf("got %+v, %v", s, err)
		}
	})
}

func TestErrorOfQEMU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Fail("stop", "disk on fire")
		f.Handle("yank", nil)
		c := f.Client(t.Context())

		var e *qmp.Error
		if err := c.Stop(t.Context()); !errors.As(err, &e) || *e != (qmp.Error{Class: qmp.ClassGeneric, Desc: "disk on fire", Command: "stop"}) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCommandNotFoundIsNotSupported(t *testing.T) {
	err := error(&qmp.Error{Class: qmp.ClassCommandNotFound, Command: "yank", Desc: "?"})
	if !errors.Is(err, qmp.ErrNotSupported) || !qmp.IsClass(err, qmp.ClassCommandNotFound) {
		t.Error("must match")
	}
	if errors.Is(&qmp.Error{Class: qmp.ClassGeneric}, qmp.ErrNotSupported) {
		t.Error("must not match")
	}
}

// QEMU leaves the id out if it could not parse the command.
func TestErrorWithoutID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := peer(t, func(r *bufio.Reader, w net.Conn) {
			shake(r, w, "")
			readID(r)
			io.WriteString(w, `{"error":{"class":"GenericError","desc":"JSON parse error"}}`+"\n")
			r.ReadByte()
		})
		c, err := qmp.NewClient(t.Context(), conn, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Cont(t.Context()); !qmp.IsClass(err, qmp.ClassGeneric) {
			t.Errorf("got %v", err)
		}
	})
}

func TestEndOfConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Hang("stop")
		c := f.Client(t.Context())
		sub := c.Subscribe(qmp.SubscribeOptions{})
		stopped := make(chan error)
		go func() { stopped <- c.Stop(context.Background()) }()
		synctest.Wait()
		if c.Err() != nil {
			t.Fatalf("ended already: %v", c.Err())
		}

		f.Kill()

		var end *qmp.EndError
		if err := <-stopped; !errors.As(err, &end) || end.Command != "stop" || !errors.Is(err, io.EOF) {
			t.Errorf("the waiting command got %v", err)
		}
		<-c.Done()
		if err := c.Err(); !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, io.EOF) {
			t.Errorf("Err is %v", err)
		}
		if err := c.Cont(t.Context()); !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("a later command got %v", err)
		}
		if _, err := sub.Next(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("the subscription got %v", err)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := qmptest.New(t).Client(t.Context())
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		if err := c.Cont(t.Context()); !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

// A peer that doesn't read must not hold up the callers for longer than they
// want, and is given up in the end.
func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		conn := peer(t, func(r *bufio.Reader, w net.Conn) {
			shake(r, w, "")
			<-release
		})
		defer close(release)
		c, err := qmp.NewClient(t.Context(), conn, &qmp.Options{WriteTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Cont(ctx); !errors.Is(err, qmp.ErrTimeout) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		<-c.Done()
		var ne net.Error
		if err := c.Err(); !errors.As(err, &ne) || !ne.Timeout() || time.Since(start) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestArguments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		for _, args := range []any{nil, (*int)(nil), map[string]any{"a": "<&>", "b": 1}} {
			if err := c.Execute(t.Context(), "x-test", args, nil); err != nil {
				t.Error(err)
			}
		}
		if err := c.Execute(t.Context(), `x","y":"`, nil, nil); err == nil {
			t.Error("a command's name with a quote was accepted")
		}
		if err := c.Execute(t.Context(), "x", func() {}, nil); err == nil {
			t.Error("a function was accepted as arguments")
		}
		got := fmt.Sprint(f.Calls())
		if want := `[x-test x-test x-test {"a":"\u003c\u0026\u003e","b":1}]`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}
