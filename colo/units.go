package colo

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Size is a number of bytes, written as a whole number with an optional unit: 512, 256MiB, 4GiB, 10GB.
type Size int64

var sizeUnits = []struct {
	name string
	n    int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1}, // T, G, M and K as QEMU's tools read them
}

// ParseSize reads a size.
func ParseSize(text string) (Size, error) {
	digits, unit := strings.TrimSpace(text), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.name); ok {
			digits, unit = strings.TrimSpace(rest), u.n
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a size: expected a whole number with a unit, for example 256MiB or 4GiB", text)
	}
	return Size(n * unit), nil
}

// String gives the size in the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.n == 0 {
			return strconv.FormatInt(int64(s)/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalYAML writes the size as [Size.String] gives it.
func (s Size) MarshalYAML() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalYAML reads what [ParseSize] reads.
func (s *Size) UnmarshalYAML(node ast.Node) error {
	v, err := ParseSize(scalar(node))
	if err != nil {
		return at(node, err.Error())
	}
	*s = v
	return nil
}

// Duration is a time span, written as Go writes it: 500ms, 20s, 5m.
type Duration time.Duration

// String gives the duration as Go writes it.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalYAML writes the duration as [Duration.String] gives it.
func (d Duration) MarshalYAML() ([]byte, error) { return []byte(d.String()), nil }

// MarshalJSON writes milliseconds.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(d) / float64(time.Millisecond))
}

// UnmarshalJSON reads milliseconds.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var ms float64
	if err := json.Unmarshal(data, &ms); err != nil {
		return err
	}
	*d = Duration(ms * float64(time.Millisecond))
	return nil
}

// UnmarshalYAML reads a Go duration.
func (d *Duration) UnmarshalYAML(node ast.Node) error {
	v, err := time.ParseDuration(scalar(node))
	if err != nil {
		return at(node, fmt.Sprintf("%q is not a duration: expected for example 500ms or 20s", scalar(node)))
	}
	*d = Duration(v)
	return nil
}

// scalar is a node's text without quotes.
func scalar(node ast.Node) string { return node.GetToken().Value }

// at is an error with a node's place.
func at(node ast.Node, msg string) error {
	p := node.GetToken().Position
	return &InvalidSpecError{Field: node.GetPath(), Msg: msg, Line: p.Line, Col: p.Column}
}
