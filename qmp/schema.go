package qmp

import (
	"encoding/json"
	"fmt"
	"strings"
)

// schema is what query-qmp-schema tells. Types have no stable names in it, so
// everything is looked up on a path from a command or an event.
type schema struct {
	entities map[string]*schemaEntity
}

type schemaEntity struct {
	Name     string `json:"name"`
	MetaType string `json:"meta-type"`
	AllowOOB bool   `json:"allow-oob"` // command

	ArgType string `json:"arg-type"` // command, event

	Tag      string         `json:"tag"` // object: the member that chooses the variant
	Members  []schemaMember `json:"members"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`

	Values []string `json:"values"` // enum

	ElementType string `json:"element-type"` // array
	JSONType    string `json:"json-type"`    // builtin
}

type schemaMember struct {
	Name string `json:"name"` // object, enum
	Type string `json:"type"` // object, alternate

	// Default is nil for a member that must be given, "null" for an
	// optional one without a fixed default.
	Default json.RawMessage `json:"default"`
}

func parseSchema(raw []byte) (*schema, error) {
	var list []*schemaEntity
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("qmp: decode query-qmp-schema: %w", err)
	}
	s := &schema{entities: make(map[string]*schemaEntity, len(list))}
	for _, e := range list {
		s.entities[e.Name] = e
	}
	return s, nil
}

// has looks up a path: a command or event, then names of members, cases of
// unions or values of enums. Arrays and alternates are walked through.
//
//	yank
//	COLO_EXIT
//	migrate-set-capabilities/capabilities/capability/x-colo
//	chardev-add/backend/socket/data/reconnect-ms
func (s *schema) has(path string) bool {
	names := strings.Split(path, "/")
	e := s.entities[names[0]]
	if e == nil || e.MetaType != "command" && e.MetaType != "event" {
		return false
	}
	return len(names) == 1 || s.within(e.ArgType, names[1:], 0)
}

// deepest bounds the walk through types that contain only each other.
const deepest = 32

func (s *schema) within(typ string, names []string, depth int) bool {
	if len(names) == 0 {
		return true
	}
	e := s.entities[typ]
	if e == nil || depth > deepest {
		return false
	}
	switch e.MetaType {
	case "array":
		return s.within(e.ElementType, names, depth+1)
	case "alternate":
		for _, m := range e.Members {
			if s.within(m.Type, names, depth+1) {
				return true
			}
		}
	case "enum":
		return len(names) == 1 && e.hasValue(names[0])
	case "object":
		for _, m := range e.Members {
			if m.Name == names[0] && s.within(m.Type, names[1:], depth+1) {
				return true
			}
		}
		for _, v := range e.Variants {
			if v.Case == names[0] && s.within(v.Type, names[1:], depth+1) {
				return true
			}
		}
	}
	return false
}

func (e *schemaEntity) hasValue(name string) bool {
	for _, v := range e.Values {
		if v == name {
			return true
		}
	}
	for _, m := range e.Members {
		if m.Name == name {
			return true
		}
	}
	return false
}
