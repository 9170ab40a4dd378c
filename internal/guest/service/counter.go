package service

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
)

// MaxRequestID is the greatest length of a request id in bytes.
const MaxRequestID = 128

// Errors of the counter.
var (
	// ErrRequestID is returned by Add for an empty or too long id, or one
	// with a space or a control character in it.
	ErrRequestID = errors.New("request id must be 1 to 128 printable characters without spaces")
	// ErrCounterFailed is returned by Add once a write to the log failed:
	// what is on the disk is then unknown until the log is read again.
	ErrCounterFailed = errors.New("counter log failed")
)

// Count is one acknowledged write: the number the request with this id got.
type Count struct {
	N  int64  `json:"n"`
	ID string `json:"id"`
}

// Counter counts requests in a log on disk. A request is in the log, and
// synced, before Add returns, and a repeated id gets its first number again.
// It is safe for concurrent use.
//
// The log is text, a line a request: number, id and a checksum of both. Lines
// are only ever appended, so just the last one can be torn by a crash; such a
// line was never acknowledged and is cut off when the log is opened.
type Counter struct {
	mu     sync.Mutex
	file   *os.File
	ids    map[string]int64
	order  []string
	failed error
}

// OpenCounter reads the log at path, which is created if missing.
func OpenCounter(path string) (*Counter, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	c := &Counter{file: f, ids: map[string]int64{}}
	end, err := c.read()
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("counter log %s: %w", path, err)
	}
	return c, nil
}

// read loads the log and returns the length of its good part.
func (c *Counter) read() (int64, error) {
	r := bufio.NewReader(c.file)
	var end int64
	for {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return end, nil // whatever is in line was torn
		}
		if err != nil {
			return 0, err
		}
		id, ok := parseLine(line, int64(len(c.order))+1)
		if !ok {
			if _, err := r.ReadByte(); errors.Is(err, io.EOF) {
				return end, nil
			}
			return 0, fmt.Errorf("line %d is damaged", len(c.order)+1)
		}
		c.remember(id)
		end += int64(len(line))
	}
}

func formatLine(n int64, id string) string {
	text := strconv.FormatInt(n, 10) + " " + id
	return fmt.Sprintf("%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// parseLine returns the id of a line that is whole and has the number n.
func parseLine(line string, n int64) (string, bool) {
	fields := strings.Fields(line)
	if len(fields) != 3 || line != formatLine(n, fields[1]) {
		return "", false
	}
	return fields[1], true
}

func (c *Counter) remember(id string) int64 {
	c.order = append(c.order, id)
	n := int64(len(c.order))
	c.ids[id] = n
	return n
}

// Add counts the request and returns its number.
func (c *Counter) Add(id string) (Count, error) {
	if id == "" || len(id) > MaxRequestID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Count{}, ErrRequestID
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, ok := c.ids[id]; ok {
		return Count{n, id}, nil
	}
	if c.failed != nil {
		return Count{}, fmt.Errorf("%w: %w", ErrCounterFailed, c.failed)
	}
	_, err := c.file.WriteString(formatLine(int64(len(c.order))+1, id))
	if err == nil {
		err = c.file.Sync()
	}
	if err != nil {
		c.failed = err
		return Count{}, fmt.Errorf("%w: %w", ErrCounterFailed, err)
	}
	return Count{c.remember(id), id}, nil
}

// Counts returns all acknowledged writes with a number greater than after, in
// their order.
func (c *Counter) Counts(after int64) []Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	var counts []Count
	for i := max(after, 0); i < int64(len(c.order)); i++ {
		counts = append(counts, Count{i + 1, c.order[i]})
	}
	return counts
}

// Close closes the log. Later calls of Add fail.
func (c *Counter) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = os.ErrClosed
	}
	return c.file.Close()
}
