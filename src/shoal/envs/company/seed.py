"""What the company has before anybody works on it: three teams and what they run."""

from __future__ import annotations

import json
from collections.abc import Iterator

from shoal.envs.company.account import Called

TEAMS = ("payments", "media", "research")
HOME = "arn:aws:{service}:us-east-1:123456789012:{name}"


def _trust(service: str) -> str:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": f"{service}.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def seed_calls() -> tuple[Called, ...]:
    """The calls that fill an empty account."""
    return tuple(_calls())


def _calls() -> Iterator[Called]:
    for team in TEAMS:
        yield Called("iam", "CreateGroup", {"GroupName": team})
        yield Called("iam", "CreateUser", {"UserName": f"{team}-lead"})
        yield Called("iam", "AddUserToGroup", {"GroupName": team, "UserName": f"{team}-lead"})
        role = {"RoleName": f"{team}-worker", "AssumeRolePolicyDocument": _trust("lambda")}
        yield Called("iam", "CreateRole", role)
        yield Called("s3", "CreateBucket", {"Bucket": f"company-{team}-data"})
        yield Called(
            "s3",
            "PutObject",
            {"Bucket": f"company-{team}-data", "Key": "readme.txt", "Body": f"Data of {team}."},
        )
        yield Called("sqs", "CreateQueue", {"QueueName": f"{team}-jobs"})
        yield Called("sqs", "CreateQueue", {"QueueName": f"{team}-dead-letters"})
        yield Called("sns", "CreateTopic", {"Name": f"{team}-alerts"})
        yield Called(
            "dynamodb",
            "CreateTable",
            {
                "TableName": f"{team}-records",
                "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
                "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
                "BillingMode": "PAY_PER_REQUEST",
            },
        )
        yield Called("logs", "CreateLogGroup", {"logGroupName": f"/company/{team}"})
        yield Called(
            "ssm",
            "PutParameter",
            {"Name": f"/{team}/mode", "Value": "normal", "Type": "String"},
        )
        yield Called(
            "secretsmanager",
            "CreateSecret",
            {"Name": f"{team}-password", "SecretString": f"kept-by-{team}"},
        )
        yield Called(
            "cloudwatch",
            "PutMetricAlarm",
            {
                "AlarmName": f"{team}-queue-too-long",
                "Namespace": "AWS/SQS",
                "MetricName": "ApproximateNumberOfMessagesVisible",
                "Dimensions": [{"Name": "QueueName", "Value": f"{team}-jobs"}],
                "Statistic": "Average",
                "Period": 60,
                "EvaluationPeriods": 1,
                "Threshold": 100.0,
                "ComparisonOperator": "GreaterThanThreshold",
                "AlarmActions": [HOME.format(service="sns", name=f"{team}-alerts")],
            },
        )
        yield Called(
            "events",
            "PutRule",
            {"Name": f"{team}-nightly", "ScheduleExpression": "rate(1 day)", "State": "ENABLED"},
        )
    yield Called(
        "lambda",
        "CreateFunction",
        {
            "FunctionName": "media-thumbnails",
            "Runtime": "python3.11",
            "Role": "arn:aws:iam::123456789012:role/media-worker",
            "Handler": "main.run",
            "Timeout": 3,
            "MemorySize": 128,
            "Code": {"ZipFile": "none"},
        },
    )
