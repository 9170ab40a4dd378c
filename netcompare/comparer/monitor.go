package comparer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// monitor is a QMP connection that is read where packets are, so that the order of both is known. It knows the few
// commands that a comparer needs.
type monitor struct {
	fd  int
	in  []byte
	out []byte
	id  int
}

// message is what QEMU says.
type message struct {
	Event string `json:"event"`
	Data  struct {
		Status   string `json:"status"`
		Mode     string `json:"mode"`
		Reason   string `json:"reason"`
		NodeName string `json:"node-name"`
		Type     string `json:"type"`
	} `json:"data"`
	Timestamp timestamp       `json:"timestamp"`
	ID        string          `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	QMP json.RawMessage `json:"QMP"`
}

// timestamp is QEMU's of an event.
type timestamp struct {
	Seconds int64 `json:"seconds"`
	Micros  int64 `json:"microseconds"`
}

func (t timestamp) before(o timestamp) bool {
	return t.Seconds < o.Seconds || t.Seconds == o.Seconds && t.Micros < o.Micros
}

func (m *message) err() error {
	if m.Error == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", m.Error.Class, m.Error.Desc)
}

// poll calls fn for each message that has come.
func (m *monitor) poll(fn func(*message)) error {
	for {
		var buf [16 << 10]byte
		n, err := unix.Read(m.fd, buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
		m.in = append(m.in, buf[:n]...)
		for {
			i := bytes.IndexByte(m.in, '\n')
			if i < 0 {
				break
			}
			var msg message
			if err := json.Unmarshal(m.in[:i], &msg); err != nil {
				// Data of events that are nothing to us may have fields of our names and other types.
				var kind struct{ Event, ID string }
				if json.Unmarshal(m.in[:i], &kind) != nil || kind.Event == "" {
					return fmt.Errorf("QMP: %w: %q", err, m.in[:i])
				}
				msg = message{Event: kind.Event}
			}
			m.in = m.in[i+1:]
			fn(&msg)
		}
		if n < len(buf) {
			return nil
		}
	}
}

// send queues a command and returns its id. Answers come in the order of commands.
func (m *monitor) send(command string, args any) (string, error) {
	m.id++
	id := fmt.Sprintf("c%d", m.id)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return "", err
	}
	m.out = append(append(m.out, line...), '\n')
	return id, m.flush()
}

func (m *monitor) flush() error {
	for len(m.out) > 0 {
		n, err := unix.Write(m.fd, m.out)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		default:
			m.out = m.out[n:]
		}
	}
	return nil
}

// errRefused is what QEMU answered to a command.
var errRefused = errors.New("QEMU refused")

// ask sends a command and waits for its answer; other messages go to fn.
func (m *monitor) ask(wait time.Duration, command string, args any, fn func(*message)) (json.RawMessage, error) {
	id, err := m.send(command, args)
	if err != nil {
		return nil, err
	}
	var answer *message
	if err := m.await(wait, func(msg *message) bool {
		if answer == nil && msg.ID == id && msg.Event == "" {
			answer = msg
		} else {
			fn(msg)
		}
		return answer != nil
	}); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	if err := answer.err(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", command, errRefused, err)
	}
	return answer.Return, nil
}

// await polls until fn has said true.
func (m *monitor) await(wait time.Duration, fn func(*message) bool) error {
	for end, done := time.Now().Add(wait), false; ; {
		if err := m.poll(func(msg *message) { done = fn(msg) || done }); err != nil || done {
			return err
		}
		left := time.Until(end)
		if left <= 0 {
			return errors.New("QEMU doesn't answer")
		}
		fds := []unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}} //nolint:gosec // a file descriptor is small
		if len(m.out) > 0 {
			fds[0].Events |= unix.POLLOUT
		}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err := m.flush(); err != nil {
			return err
		}
	}
}

// openMonitor connects and says hello. QEMU serves one client on a socket and lets others wait.
func openMonitor(path string, wait time.Duration) (*monitor, error) {
	fd, err := dial(path)
	if err != nil {
		return nil, err
	}
	m := &monitor{fd: fd}
	if err = m.await(wait, func(msg *message) bool { return msg.QMP != nil }); err == nil {
		_, err = m.ask(wait, "qmp_capabilities", nil, func(*message) {})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("QMP %s: %w", path, err)
	}
	return m, nil
}
