package api

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
)

func TestStrict(t *testing.T) {
	for in, want := range map[string]string{
		`{"reason":"x"}`:                      "",
		` {"reason":"x"} ` + "\n":             "",
		``:                                    "empty",
		`{`:                                   "ends in the middle",
		`{"reason":"x"`:                       "ends in the middle",
		`{"reason":"x"} {}`:                   "after the JSON value",
		`{"reason":"x"}x`:                     "after the JSON value",
		`{"reasn":"x"}`:                       `reasn: unknown field (line 1, column`,
		"{\n \"timeout\":1,\n \"force\":1\n}": "force: expected true or false, found number (line 3, column",
		`{"reason":"x","reason":"y"}`:         "reason: is there twice",
		`{"reason":"x","REASON":"y"}`:         "REASON: is there twice",
		`{"timeout":"soon"}`:                  "timeout: expected a number, found string",
		`[]`:                                  "expected an object, found array",
		`null x`:                              "after the JSON value",
		`{"reason":"x",}`:                     "not JSON",
	} {
		var out StopRequest
		err := strict([]byte(in), &out)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", in, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, ErrBadRequest)):
			t.Errorf("%s: want %q, got %v", in, want, err)
		}
	}
	if err := strict([]byte(strings.Repeat("[", 1000)), new(any)); err == nil || !strings.Contains(err.Error(), "nested too deeply") {
		t.Errorf("%v", err)
	}
	var deep colo.PrepareRequest
	err := strict([]byte(`{"spec":{"disks":[{"name":"a"},{"name":"b","name":"c"}]}}`), &deep)
	if err == nil || !strings.Contains(err.Error(), "spec.disks[1].name: is there twice") {
		t.Errorf("%v", err)
	}
}

// FuzzStrict holds the strict reading against encoding/json's: what it takes is taken alike, what it refuses is refused.
func FuzzStrict(f *testing.F) {
	f.Add(`{"from":"n1","id":"x","spec":{"name":"web","memory":1048576,"disks":[{"name":"vda","file":"f","size":512}]},"generation":1}`)
	f.Add(`{"from":"n1","from":"n2"}`)
	f.Add(`{"spec":{"protection":{"checkpoint_delay":1e400}}}`)
	f.Add(`[[[[{"a":[`)
	f.Fuzz(func(t *testing.T, in string) {
		var a, b colo.PrepareRequest
		err := strict([]byte(in), &a)
		plain := json.Unmarshal([]byte(in), &b)
		if err == nil && (plain != nil || !reflect.DeepEqual(a, b)) {
			t.Errorf("taken as %+v; encoding/json: %+v, %v", a, b, plain)
		}
		if plain != nil && err == nil {
			t.Errorf("taken, but encoding/json says %v", plain)
		}
		if err != nil && !errors.Is(err, ErrBadRequest) && !errors.As(err, new(*colo.InvalidSpecError)) {
			t.Errorf("%T: %v", err, err)
		}
	})
}

// FuzzEvents: whatever a server sends, reading ends and no message is larger than the limit.
func FuzzEvents(f *testing.F) {
	f.Add("id: 1-1\nevent: state\ndata: {\"seq\":1}\n\n: alive\n\n")
	f.Add("data\n\ndata: a\ndata: b\n\n\n\n")
	f.Add("retry: 1\r\nid:x\r\n\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		n := 0
		err := readEvents(strings.NewReader(in), func(m sse) error {
			n++
			if len(m.data) > 2*maxEvent || strings.Contains(m.id, "\n") {
				t.Errorf("%d bytes, id %q", len(m.data), m.id)
			}
			return nil
		})
		if err == nil || n > 1+strings.Count(in, "\n\n")+strings.Count(in, "\n\r\n") {
			t.Errorf("%v after %d messages", err, n)
		}
	})
}

// FuzzErrorBody: whatever a server answers, the error can be used.
func FuzzErrorBody(f *testing.F) {
	f.Add(`{"error":{"code":"no_vm","message":"x","exit":1,"also":["closed"],"refused":{"state":"solo","event":"x"},"fields":[{}],"differs":{}}}`)
	f.Fuzz(func(t *testing.T, in string) {
		var body struct {
			Error ErrorBody `json:"error"`
		}
		if json.Unmarshal([]byte(in), &body) != nil {
			return
		}
		e := &Error{Body: body.Error}
		_ = errors.Is(e, colo.ErrNoVM)
		var inv *colo.InvalidSpecError
		if errors.As(e, &inv) {
			_ = inv.Error()
		}
		if again, _ := describe(e, "n", "v"); again.Message != e.Error() {
			t.Errorf("%q became %q", e.Error(), again.Message)
		}
	})
}
