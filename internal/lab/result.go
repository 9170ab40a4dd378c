package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
)

// Result is what one run of a scenario found. A field that is null was not measured. Times are in milliseconds.
type Result struct {
	Scenario string  `json:"scenario"`
	Seed     uint64  `json:"seed"`
	OK       bool    `json:"ok"`
	Error    *string `json:"error"`
	QEMU     *string `json:"qemu"`  // version
	Accel    *string `json:"accel"` // tcg or kvm

	// VMs is how many there were, if more than one; sums and worst figures are over all of them.
	VMs *int `json:"vms,omitempty"`

	// BootIDSame is whether every answer came from one and the same boot of the guest.
	BootIDSame *bool `json:"boot_id_same"`
	// Boots is how many different boots have answered.
	Boots *int `json:"boots"`
	// TCPTotal connections were open when the first loss came; TCPSurvived of them carried every byte to the end.
	TCPSurvived *int `json:"tcp_survived"`
	TCPTotal    *int `json:"tcp_total"`
	// Writes that the guest acknowledged; of those, the ones its log doesn't have; and the log's repetitions.
	WritesAcked      *int `json:"writes_acked"`
	WritesLost       *int `json:"writes_lost"`
	WritesDuplicated *int `json:"writes_duplicated"`
	// OutputsFromBoth counts frames by the rule of [Breaches].
	OutputsFromBoth *int `json:"outputs_from_both"`

	// From the loss until a node noticed, and until the survivor went on. Of several losses the median.
	DetectMS   *float64 `json:"detect_ms"`
	FailoverMS *float64 `json:"failover_ms"`
	// The longest time without an answer around the loss, see [Track.Blackout]. Of several losses the median.
	BlackoutHTTPMS *float64 `json:"blackout_http_ms"`
	BlackoutTCPMS  *float64 `json:"blackout_tcp_ms"`

	// From the loss until the last frame of the copy that did not go on; only where both hosts lived on.
	SilentMS *float64 `json:"silent_ms"`

	// Kinds of attempts that somebody without a key has made, and how many attempts got him anything; only in the scenario that is about it.
	Attempts   *int `json:"attempts"`
	Intrusions *int `json:"intrusions"`

	// What became of the connections that were open at each of many losses; only in the scenarios that are about it.
	Campaign *Campaign `json:"campaign"`

	// What a client feels alone and protected; only in the scenarios that are about it.
	Latency *Latency `json:"latency"`

	// How long the first protection took, and how long the guest stood still in it.
	ProtectMS      *float64 `json:"protect_ms"`
	ProtectPauseMS *float64 `json:"protect_pause_ms"`
	// The last time that the VM was made redundant again: what was sent of what the disks hold; and how long it took from the moment at which
	// nothing was missing any more, the daemons' hold-down with it.
	ResyncBytes *int64   `json:"resync_bytes"`
	DiskBytes   *int64   `json:"disk_bytes"`
	ReprotectMS *float64 `json:"reprotect_ms"`
	// How that resync was done, and how long it took, without the hold-down.
	ResyncMode *string  `json:"resync_mode"`
	ResyncMS   *float64 `json:"resync_ms"`
	// A full resync for comparison; how much differed before the resync, in blocks of 64 KiB. Only in scenarios that are about that.
	FullBytes   *int64   `json:"full_bytes"`
	FullMS      *float64 `json:"full_ms"`
	DifferBytes *int64   `json:"differ_bytes"`
	// Bytes of the halves that differ at the end.
	HalvesDiffer *int64 `json:"halves_differ"`

	Checkpoints          *int64   `json:"checkpoints"`
	CheckpointPauseP50MS *float64 `json:"checkpoint_pause_p50_ms"`
	CheckpointPauseP99MS *float64 `json:"checkpoint_pause_p99_ms"`

	// The median latency in the seconds before the loss: what the blackouts are to be compared with.
	HTTPP50MS *float64 `json:"http_p50_ms"`
	TCPP50MS  *float64 `json:"tcp_p50_ms"`
}

// ms is a duration as a result has it.
func ms(d time.Duration) *float64 {
	v := float64(d.Microseconds()) / 1000
	return &v
}

func ptr[T any](v T) *T { return &v }

// median returns nil for nothing.
func median(all []float64) *float64 {
	if len(all) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(all))
	if n := len(sorted); n%2 == 0 {
		return ptr((sorted[n/2-1] + sorted[n/2]) / 2)
	}
	return ptr(sorted[len(sorted)/2])
}

// A Format is how results are printed.
type Format string

// Formats.
const (
	FormatTable Format = "table"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
)

// ParseFormat takes what a person typed.
func ParseFormat(s string) (Format, error) {
	f := Format(s)
	if slices.Contains([]Format{FormatTable, FormatJSON, FormatYAML}, f) {
		return f, nil
	}
	return "", fmt.Errorf("output format %q: expected table, json or yaml", s)
}

// Encode writes any value as JSON, in one line, or as a YAML document.
func Encode(w io.Writer, f Format, v any) error {
	data, err := json.Marshal(v)
	if err == nil && f == FormatYAML {
		if data, err = yaml.JSONToYAML(data); err == nil {
			data = append([]byte("---\n"), data...)
		}
	}
	if err != nil {
		return err
	}
	_, err = w.Write(append([]byte(strings.TrimSuffix(string(data), "\n")), '\n'))
	return err
}

// column is one column of the table of results.
type column struct {
	title string
	value func(*Result) any
}

var columns = []column{
	{"SEED", func(r *Result) any { return r.Seed }},
	{"OK", func(r *Result) any { return yes(r.OK) }},
	{"DETECT", func(r *Result) any { return r.DetectMS }},
	{"FAILOVER", func(r *Result) any { return r.FailoverMS }},
	{"HTTP", func(r *Result) any { return r.BlackoutHTTPMS }},
	{"TCP", func(r *Result) any { return r.BlackoutTCPMS }},
	{"SURVIVED", func(r *Result) any { return of(r.TCPSurvived, r.TCPTotal) }},
	{"ACKED", func(r *Result) any { return r.WritesAcked }},
	{"LOST", func(r *Result) any { return r.WritesLost }},
	{"TWICE", func(r *Result) any { return r.WritesDuplicated }},
	{"BOTH", func(r *Result) any { return r.OutputsFromBoth }},
}

func yes(v bool) string {
	if v {
		return "yes"
	}
	return "NO"
}

func of(n, total *int) any {
	if n == nil || total == nil {
		return nil
	}
	return fmt.Sprintf("%d/%d", *n, *total)
}

// cell prints a value; what was not measured is a dash.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case *string:
		if v == nil {
			return "-"
		}
		return *v
	case *float64:
		if v == nil {
			return "-"
		}
		return strconv.FormatFloat(*v, 'f', 0, 64)
	case *int:
		if v == nil {
			return "-"
		}
		return strconv.Itoa(*v)
	case *int64:
		if v == nil {
			return "-"
		}
		return strconv.FormatInt(*v, 10)
	default:
		return fmt.Sprint(v)
	}
}

// WriteTable prints results for people: times in milliseconds, the medians of several runs below them, then what went wrong.
func WriteTable(w io.Writer, results []Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	_, _ = fmt.Fprintln(tw, strings.Join(titles, "\t"))
	numbers := make([][]float64, len(columns))
	for i := range results {
		var cells []string
		for j, c := range columns {
			v := c.value(&results[i])
			if f, ok := v.(*float64); ok && f != nil {
				numbers[j] = append(numbers[j], *f)
			}
			cells = append(cells, cell(v))
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	if len(results) > 1 {
		cells := []string{"median"}
		for _, n := range numbers[1:] {
			cells = append(cells, cell(median(n)))
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	if err := tw.Flush(); err != nil { // what could not be written before is reported here
		return err
	}
	return WriteErrors(w, results)
}

// WriteErrors says what went wrong.
func WriteErrors(w io.Writer, results []Result) error {
	for _, r := range results {
		if r.Error == nil {
			continue
		}
		if _, err := fmt.Fprintf(w, "seed %d: %s\n", r.Seed, *r.Error); err != nil {
			return err
		}
	}
	return nil
}
