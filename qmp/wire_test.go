package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 300<<10)
	for _, c := range []struct {
		name, in string
		limit    int
		want     []string
		err      error
	}{
		{"none", "", 100, nil, io.EOF},
		{"several", "a\r\n\n  \nb\n", 100, []string{"a", "b"}, io.EOF},
		{"without end", "a\nb", 100, []string{"a"}, io.ErrUnexpectedEOF},
		{"longer than the buffer", long + "\nb\n" + long + "\n", 1 << 20, []string{long, "b", long}, io.EOF},
		{"at the limit", "12345\n", 6, []string{"12345"}, io.EOF},
		{"over the limit", "b\n123456\n", 6, []string{"b"}, &LineTooLongError{6}},
		{"long and over the limit", long + "\n", 100 << 10, nil, &LineTooLongError{100 << 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLineReader(iotest.HalfReader(strings.NewReader(c.in)), c.limit)
			for i, want := range c.want {
				if got, err := l.next(); err != nil || string(got) != want {
					t.Fatalf("line %d: %d bytes, %v", i, len(got), err)
				}
			}
			_, err := l.next()
			var long *LineTooLongError
			if errors.As(c.err, &long) {
				if !errors.As(err, &long) {
					t.Errorf("got %v", err)
				}
			} else if !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
		})
	}
}

func TestParseMessage(t *testing.T) {
	m, err := parseMessage([]byte(`{"timestamp":{"seconds":5,"microseconds":7},"event":"STOP","data":{"a":1}}`))
	if err != nil || m.Event != "STOP" || string(m.Data) != `{"a":1}` || !m.Timestamp.time().Equal(time.Unix(5, 7000)) {
		t.Errorf("got %+v, %v", m, err)
	}
	for _, bad := range []string{`{}`, `[]`, `1`, `{"event":1}`, `{"return":`, `{"id":"1"}`, "\x00"} {
		var pe *ProtocolError
		if _, err := parseMessage([]byte(bad)); !errors.As(err, &pe) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s := beginning(bytes.Repeat([]byte("a"), 1000)); len(s) > 200 {
		t.Error("an error must not carry the whole line")
	}
}

// What is handed on must not change when the next line is read.
func TestMessagesDontShareMemory(t *testing.T) {
	l := newLineReader(strings.NewReader(`{"return":{"a":1},"id":7}`+"\n"+`{"return":{"b":2},"id":8}`+"\n"), 1000)
	var kept []*message
	for range 2 {
		line, err := l.next()
		if err != nil {
			t.Fatal(err)
		}
		m, err := parseMessage(line)
		if err != nil {
			t.Fatal(err)
		}
		clear(line)
		kept = append(kept, m)
	}
	if string(kept[0].Return) != `{"a":1}` || string(kept[0].ID) != "7" || string(kept[1].Return) != `{"b":2}` {
		t.Errorf("got %s %s", kept[0].Return, kept[1].Return)
	}
}

func TestEncodeCommand(t *testing.T) {
	for _, c := range []struct {
		oob  bool
		args any
		want string
	}{
		{false, nil, `{"execute":"stop","id":7}` + "\n"},
		{true, map[string]int{"a": 1}, `{"exec-oob":"stop","id":7,"arguments":{"a":1}}` + "\n"},
		{false, json.RawMessage("null"), `{"execute":"stop","id":7}` + "\n"},
	} {
		if got, err := encodeCommand(c.oob, "stop", 7, c.args); err != nil || string(got) != c.want {
			t.Errorf("got %s, %v", got, err)
		}
	}
}

// FuzzLines: whatever comes, and however it is cut up, the reader doesn't
// panic, respects its limit and returns the lines that are there.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\n\n"), 10)
	f.Add([]byte(`{"QMP":{"version":{}}}`+"\n"), 1000)
	f.Add(bytes.Repeat([]byte("x"), 40<<10), 64<<10)
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		if limit < 1 || limit > 1<<20 {
			limit = 1 << 10
		}
		var want [][]byte
		rest := in
		for {
			line, after, ok := bytes.Cut(rest, []byte("\n"))
			if !ok || len(line)+1 > limit {
				break
			}
			if line = bytes.TrimSpace(line); len(line) > 0 {
				want = append(want, line)
			}
			rest = after
		}
		l := newLineReader(iotest.OneByteReader(bytes.NewReader(in)), limit)
		for {
			line, err := l.next()
			if err != nil {
				break
			}
			if len(want) == 0 || !bytes.Equal(line, want[0]) {
				t.Fatalf("got %q, want %q", line, want)
			}
			want = want[1:]
		}
		if len(want) > 0 {
			t.Fatalf("%q missing", want)
		}
	})
}

// FuzzParseMessage: a line is either understood or a ProtocolError.
func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(`{"QMP":{"version":{"qemu":{"major":11}},"capabilities":["oob"]}}`))
	f.Add([]byte(`{"return":[],"id":1}`))
	f.Add([]byte(`{"error":{"class":"GenericError","desc":"x"},"id":"a"}`))
	f.Add([]byte(`{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP","data":null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if err != nil {
			var pe *ProtocolError
			if !errors.As(err, &pe) || pe.Error() == "" {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		if m.Return != nil && !json.Valid(m.Return) || m.Data != nil && !json.Valid(m.Data) {
			t.Fatal("invalid JSON was handed on")
		}
		_ = m.Timestamp.time()
	})
}
