use super::*;

fn args(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

#[test]
fn core_keys_load_in_any_letter_case() {
    let config = Config::load(&args(&["maxexecutions", "7", "Region", "eu"]), "/srv/env").unwrap_or_default();
    assert_eq!(config.get(b"MaxExecutions"), Current::Number(7));
    assert_eq!(config.get(b"maxexecutions"), Current::Unknown);
    assert_eq!(config.explicit(b"Region"), Some(b"eu".to_vec()));
    assert_eq!(config.explicit(b"MaxExecutions"), None);
}

#[test]
fn bad_values_do_not_load() {
    let refused = |words: &[&str]| Config::load(&args(words), "").err().unwrap_or_default();
    assert_eq!(
        refused(&["ExecutionThreads", "0"]),
        "Failed setting config value ExecutionThreads"
    );
    assert_eq!(
        refused(&["MaxExecutions"]),
        "Value was not given to MaxExecutions"
    );
    assert_eq!(
        refused(&["CreateVenv", "yes"]),
        "Failed parsing CreateVenv config, value must be a number."
    );
}

#[test]
fn names_in_the_server_s_configuration() {
    assert_eq!(
        kebab_case("MaxExecutionsPerRegistration"),
        "max-executions-per-registration"
    );
    let config = Arc::new(Config::default());
    let names: Vec<String> = config
        .server_options()
        .into_iter()
        .map(|option| option.name)
        .collect();
    assert!(names.contains(&"python-venv".to_owned()) && !names.contains(&"create-venv".to_owned()));
}

#[test]
fn changes_at_run_time() {
    let config = Config::default();
    assert_eq!(config.set(b"maxexecutions", Some(b"5")), Change::Set);
    assert_eq!(config.number(Number::MaxExecutions), 5);
    assert_eq!(
        config.set(b"PythonAttemptTraceback", Some(b"0")),
        Change::SavedExtra
    );
    assert!(!config.is_on(Number::PythonAttemptTraceback));
    assert_eq!(
        config.set(b"ExecutionThreads", Some(b"4")),
        Change::Refused("(error) Config value ExecutionThreads not modifiable at runtime".into())
    );
    assert_eq!(
        config.set(b"PythonAttemptTraceback", Some(b"x")),
        Change::Refused("Failed setting config value for key 'PythonAttemptTraceback' with value 'x'".into())
    );
}
