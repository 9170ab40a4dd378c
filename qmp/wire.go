package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// message is any line that QEMU sends: the greeting, a reply or an event.
// json.RawMessage copies, so nothing in it shares memory with the reader.
type message struct {
	Greeting  *wireGreeting   `json:"QMP"`
	ID        json.RawMessage `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp wireTime        `json:"timestamp"`
}

type wireGreeting struct {
	Version      Version  `json:"version"`
	Capabilities []string `json:"capabilities"`
}

type wireError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type wireTime struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// time is zero where QEMU could not tell the time (it sends -1 then).
func (t wireTime) time() time.Time {
	if t.Seconds <= 0 || t.Microseconds < 0 {
		return time.Time{}
	}
	return time.Unix(t.Seconds, t.Microseconds*1000)
}

// parseMessage reads one line.
func parseMessage(line []byte) (*message, error) {
	m := new(message)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, &ProtocolError{Reason: err.Error(), Line: beginning(line)}
	}
	if m.Greeting == nil && m.Event == "" && m.Return == nil && m.Error == nil {
		return nil, &ProtocolError{Reason: "neither greeting, reply nor event", Line: beginning(line)}
	}
	return m, nil
}

func beginning(line []byte) string {
	const most = 120
	if len(line) > most {
		return string(line[:most]) + "…"
	}
	return string(line)
}

// lineReader reads lines of any length up to a limit. Most lines fit the
// buffer and are returned without a copy.
type lineReader struct {
	r     *bufio.Reader
	limit int
	long  []byte // collects a line that is longer than the buffer
}

func newLineReader(r io.Reader, limit int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 16<<10), limit: limit}
}

// next returns the next line that isn't blank, without its end. It is valid
// until the following call. A last line without an end is an error, since QEMU
// died in the middle of it.
func (l *lineReader) next() ([]byte, error) {
	for {
		line, err := l.line()
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

func (l *lineReader) line() ([]byte, error) {
	// A schema of 250 KB comes once; its memory should not be kept.
	l.long = nil
	for {
		part, err := l.r.ReadSlice('\n')
		if len(l.long)+len(part) > l.limit {
			return nil, &LineTooLongError{Limit: l.limit}
		}
		switch {
		case err == nil && l.long == nil:
			return part, nil
		case err == nil:
			l.long = append(l.long, part...)
			return l.long, nil
		case errors.Is(err, bufio.ErrBufferFull):
			l.long = append(l.long, part...)
		case errors.Is(err, io.EOF) && len(l.long)+len(part) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// encodeCommand makes the line for one command.
//
// QEMU reads its socket byte by byte, at some 3 µs each, so the line is short.
func encodeCommand(oob bool, command string, id uint64, args any) ([]byte, error) {
	if !plain(command) {
		return nil, fmt.Errorf("qmp: %q can't be the name of a command", command)
	}
	verb := `{"execute":"`
	if oob {
		verb = `{"exec-oob":"`
	}
	var a []byte
	if args != nil {
		var err error
		if a, err = json.Marshal(args); err != nil {
			return nil, fmt.Errorf("qmp: %s: encode arguments: %w", command, err)
		}
		if string(a) == "null" {
			a = nil
		}
	}
	b := make([]byte, 0, len(verb)+len(command)+len(a)+48)
	b = append(b, verb...)
	b = append(b, command...)
	b = append(b, `","id":`...)
	b = strconv.AppendUint(b, id, 10)
	if a != nil {
		b = append(b, `,"arguments":`...)
		b = append(b, a...)
	}
	return append(b, "}\n"...), nil
}

// plain tells whether s needs no quoting in JSON and can be a QAPI name.
func plain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return s != ""
}
